"""A trained model as a scorer: histories in, scores of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.evaluation.client import Scorer
from pfsr_core.models.compressors import COVERED, SequenceContext, UserMemory
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.training.padding import pad_right, pad_times
from pfsr_core.training.task import Task, client_item_index


def make_scorer(
    task: Task, merged_params: Params, client_data: ClientDataset, max_length: int
) -> Scorer:
    """A scorer of histories: (U, V + 1), -inf for what the client cannot rank.

    Without their times a model that reads times takes all gaps between interactions for zero.

    Args:
        task: The model as functions.
        merged_params: The client's merged parameters, shared and private.
        client_data: The client.
        max_length: Most items of a history that are read.
    """
    candidates = task.items.candidates(client_data)
    client_model = effective_model(task, merged_params, client_data)

    @torch.no_grad()
    def score(
        histories: Sequence[ItemArray],
        times: Sequence[ItemArray] = (),
        users: ItemArray | None = None,
    ) -> Tensor:
        read_histories = what_is_read(task, histories, times, max_length)
        item_codes, lengths = read_histories.codes, read_histories.lengths
        user_rows = torch.zeros_like(lengths) if users is None else torch.from_numpy(users)
        item_rows, item_table = with_unseen(task, client_model[ITEMS], client_data, item_codes)
        reading = {**client_model, ITEMS: item_table}
        context = SequenceContext(read_histories.split_at, user_rows)
        hidden_states = task.model.apply(reading, item_rows, None, read_histories.times, context)
        last_hidden = hidden_states[torch.arange(len(item_rows)), (lengths - 1).clamp(min=0)]
        scores = last_hidden.new_full((len(item_rows), client_data.num_items + 1), -torch.inf)
        scores[:, candidates] = last_hidden @ client_model[ITEMS][1:].T
        return scores

    return score


@dataclass(frozen=True)
class ScoringQuery:
    """A history to score the catalogue for.

    Attributes:
        history: Item codes (n,), oldest first, n >= 1.
        times: Their times (n,), whole seconds; empty where they are unknown.
        user: Row of the user as a ``Scorer`` takes it: from 1 on, 0 for an unknown user.
    """

    history: ItemArray
    times: ItemArray
    user: int


@torch.no_grad()
def score_from_memory(
    task: Task,
    merged_params: Params,
    client_data: ClientDataset,
    query: ScoringQuery,
    *,
    max_length: int,
    memory: UserMemory | None,
) -> tuple[Tensor, UserMemory]:
    """Scores of the catalogue (V + 1,) as :func:`make_scorer`'s, and the memory to go on from.

    Only items that ``memory`` does not stand for are read; it is made where there is none, or where
    it does not serve for this history any more.

    Args:
        task: The model as functions; it must have ``serving``.
        merged_params: The client's merged parameters, shared and private.
        client_data: The client.
        query: The history, its times and its user.
        max_length: Most items of a history that are read.
        memory: What is remembered of this user; None for nothing.

    Returns:
        Scores by item code, -inf for what the client cannot rank, and the new memory.
    """
    serving = task.model.serving
    assert serving is not None
    client_model = effective_model(task, merged_params, client_data)
    history_length = len(query.history)
    memory_end = serving.memory_length(history_length, None if memory is None else memory.covered)
    memory_fits = memory is not None and memory.covered == memory_end
    first_item = memory_end if memory_fits else task.model.window_start(history_length, max_length)
    item_codes = torch.from_numpy(query.history[first_item:])[None]
    times = torch.from_numpy(query.times[first_item:])[None] if len(query.times) else None
    known_times = times if task.model.reads_times else None
    item_rows, item_table = with_unseen(task, client_model[ITEMS], client_data, item_codes)
    reading, num_old = {**client_model, ITEMS: item_table}, memory_end - first_item
    if memory is not None and memory_fits:
        old_memory = memory.tensors
    else:
        of_old = None if known_times is None else known_times[:, :num_old]
        old_memory = serving.compress(
            reading, item_rows[:, :num_old], torch.tensor([query.user]), of_old
        )
    of_recent = None if known_times is None else known_times[:, num_old:]
    last_hidden, new_memory = serving.continue_from(
        reading, item_rows[:, num_old:], old_memory, of_recent
    )
    scores = torch.full((client_data.num_items + 1,), -torch.inf)
    scores[task.items.candidates(client_data)] = client_model[ITEMS][1:] @ last_hidden[0]
    num_covered = memory_end + int(new_memory[COVERED] - old_memory[COVERED])
    return scores, UserMemory(num_covered, new_memory)


class Reading(NamedTuple):
    """What is read of B histories.

    Attributes:
        codes: Item codes (B, L), right-padded with 0.
        lengths: How many of them are items (B,).
        split_at: How many of these are old (B,).
        times: Their times (B, L); None where they are unknown, or not read.
    """

    codes: Tensor
    lengths: Tensor
    split_at: Tensor
    times: Tensor | None


def what_is_read(
    task: Task, histories: Sequence[ItemArray], times: Sequence[ItemArray], max_length: int
) -> Reading:
    """The part of each history that the model reads. ``times``: of each history, or nothing."""
    first_items = [task.model.window_start(len(history), max_length) for history in histories]
    read_parts = [
        history[first_item:] for history, first_item in zip(histories, first_items, strict=True)
    ]
    codes, lengths = pad_right(read_parts, max(map(len, read_parts), default=1))
    split_at = task.model.split_points(torch.tensor([len(history) for history in histories]))
    padded_times = None
    if task.model.reads_times and times:
        known_times = [
            user_times[first_item:]
            for user_times, first_item in zip(times, first_items, strict=True)
        ]
        padded_times = pad_times(known_times, codes)
    return Reading(
        codes, lengths, (split_at - torch.tensor(first_items)).clamp(min=0), padded_times
    )


@torch.no_grad()
def effective_model(task: Task, merged_params: Params, client_data: ClientDataset) -> Params:
    """A client's merged parameters as the model takes them: see ``ItemFunctions.materialize``."""
    return task.items.materialize(merged_params, client_item_index(task, client_data))


def with_unseen(
    task: Task, item_table: Tensor, client_data: ClientDataset, item_codes: Tensor
) -> tuple[Tensor, Tensor]:
    """``item_codes`` as row numbers, and the client's table with a row for each of them.

    Rows of items that the client's table (V' + 1, D) lacks come after its own.
    """
    known_items = task.items.candidates(client_data).numpy()
    unseen_items = np.setdiff1d(item_codes.numpy(), known_items)
    unseen_items = unseen_items[unseen_items > 0]
    row_numbers = torch.zeros(client_data.num_items + 1, dtype=torch.long)
    row_numbers[np.concatenate([known_items, unseen_items])] = torch.arange(
        1, len(known_items) + len(unseen_items) + 1
    )
    if len(unseen_items):
        item_table = torch.cat(
            [item_table, task.items.unseen_rows(client_data, unseen_items).to(item_table.dtype)]
        )
    return row_numbers[item_codes], item_table
