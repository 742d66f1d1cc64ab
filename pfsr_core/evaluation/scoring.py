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


def make_scorer(task: Task, params: Params, data: ClientDataset, max_length: int) -> Scorer:
    """A scorer of histories: (U, V + 1), -inf for what the client cannot rank.

    Without their times a model that reads times takes all gaps between interactions for zero.

    Args:
        task: The model as functions.
        params: The client's merged parameters, shared and private.
        data: The client.
        max_length: Most items of a history that are read.
    """
    candidates, model = task.items.candidates(data), effective_model(task, params, data)

    @torch.no_grad()
    def score(
        histories: Sequence[ItemArray],
        times: Sequence[ItemArray] = (),
        users: ItemArray | None = None,
    ) -> Tensor:
        read = what_is_read(task, histories, times, max_length)
        codes, lengths = read.codes, read.lengths
        whose = torch.zeros_like(lengths) if users is None else torch.from_numpy(users)
        items, table = with_unseen(task, model[ITEMS], data, codes)
        reading, context = {**model, ITEMS: table}, SequenceContext(read.split_at, whose)
        hidden = task.model.apply(reading, items, None, read.times, context)
        last = hidden[torch.arange(len(items)), (lengths - 1).clamp(min=0)]
        scores = last.new_full((len(items), data.num_items + 1), -torch.inf)
        scores[:, candidates] = last @ model[ITEMS][1:].T
        return scores

    return score


@dataclass(frozen=True)
class Question:
    """Who asks for scores.

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
    params: Params,
    data: ClientDataset,
    asked: Question,
    *,
    max_length: int,
    memory: UserMemory | None,
) -> tuple[Tensor, UserMemory]:
    """Scores of the catalogue (V + 1,) as :func:`make_scorer`'s, and the memory to go on from.

    Only items that ``memory`` does not stand for are read; it is made where there is none, or where
    it does not serve for this history any more.

    Args:
        task: The model as functions; it must have ``serving``.
        params: The client's merged parameters, shared and private.
        data: The client.
        asked: Whose history, and the history.
        max_length: Most items of a history that are read.
        memory: What is remembered of this user; None for nothing.

    Returns:
        Scores by item code, -inf for what the client cannot rank, and the new memory.
    """
    serving = task.model.serving
    assert serving is not None
    model, length = effective_model(task, params, data), len(asked.history)
    begin = serving.memory_length(length, None if memory is None else memory.covered)
    fits = memory is not None and memory.covered == begin
    first = begin if fits else task.model.window_start(length, max_length)
    codes = torch.from_numpy(asked.history[first:])[None]
    times = torch.from_numpy(asked.times[first:])[None] if len(asked.times) else None
    known = times if task.model.reads_times else None
    items, table = with_unseen(task, model[ITEMS], data, codes)
    reading, old = {**model, ITEMS: table}, begin - first
    if memory is not None and fits:
        before = memory.tensors
    else:
        of_old = None if known is None else known[:, :old]
        before = serving.compress(reading, items[:, :old], torch.tensor([asked.user]), of_old)
    of_recent = None if known is None else known[:, old:]
    last, after = serving.continue_from(reading, items[:, old:], before, of_recent)
    scores = torch.full((data.num_items + 1,), -torch.inf)
    scores[task.items.candidates(data)] = model[ITEMS][1:] @ last[0]
    covered = begin + int(after[COVERED] - before[COVERED])
    return scores, UserMemory(covered, after)


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
    firsts = [task.model.window_start(len(history), max_length) for history in histories]
    parts = [history[first:] for history, first in zip(histories, firsts, strict=True)]
    codes, lengths = pad_right(parts, max(map(len, parts), default=1))
    split_at = task.model.split_points(torch.tensor([len(history) for history in histories]))
    seconds = None
    if task.model.reads_times and times:
        known = [part[first:] for part, first in zip(times, firsts, strict=True)]
        seconds = pad_times(known, codes)
    return Reading(codes, lengths, (split_at - torch.tensor(firsts)).clamp(min=0), seconds)


@torch.no_grad()
def effective_model(task: Task, params: Params, data: ClientDataset) -> Params:
    """A client's merged parameters as the model takes them: see ``ItemFunctions.materialize``."""
    return task.items.materialize(params, client_item_index(task, data))


def with_unseen(
    task: Task, table: Tensor, data: ClientDataset, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """``codes`` as row numbers, and the client's table with a row for each of them.

    Rows of items that the client's table (V' + 1, D) lacks come after its own.
    """
    known = task.items.candidates(data).numpy()
    unseen = np.setdiff1d(codes.numpy(), known)
    unseen = unseen[unseen > 0]
    numbers = torch.zeros(data.num_items + 1, dtype=torch.long)
    numbers[np.concatenate([known, unseen])] = torch.arange(1, len(known) + len(unseen) + 1)
    if len(unseen):
        table = torch.cat([table, task.items.unseen_rows(data, unseen).to(table.dtype)])
    return numbers[codes], table
