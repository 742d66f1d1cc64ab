"""Evaluation of many small clients as one program, each with its own model.

The ranks are those of :func:`pfsr_core.evaluation.client.evaluate_client` with the scorer of
:func:`pfsr_core.evaluation.scoring.make_scorer`. Nothing of the catalogue's size is made for a
client: it
ranks its own candidates, and every other item is behind them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut, ItemArray
from pfsr_core.evaluation.client import ClientEvaluation, evaluation_of
from pfsr_core.evaluation.ranking import rank_among, rank_in_sample
from pfsr_core.evaluation.scoring import what_is_read, with_unseen
from pfsr_core.items.tables import row_numbers
from pfsr_core.models.compressors import SequenceContext
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.training.grouping import Size, group_by_size, parameters_of
from pfsr_core.training.stacking import (
    pad_and_stack,
    pad_known,
    pad_together,
    stack_params,
    stack_rows,
)
from pfsr_core.training.task import Task, client_item_index

SMALL = 8  # users of a client up to which it is evaluated together with others

Evaluated = Mapping[HeldOut, ClientEvaluation]


@dataclass(frozen=True)
class Entry:
    """A client's merged parameters, and its users' histories as row numbers of its item table.

    ``table``: which items the rows of its item tensors are of.

    ``rows`` (2U, L) of ``lengths`` (2U,): the histories before the validation items, then those
    before the test items; ``times`` (2U, L) theirs, where the model reads times; ``context``: where
    each is split, and its user. A private table has got a row for each item in them. The table that
    other modes make is not made here: it lives as long as a group is evaluated.
    """

    data: ClientDataset
    params: Params
    rows: Tensor
    times: Tensor | None
    lengths: Tensor
    context: SequenceContext
    candidates: Tensor
    table: Params


def evaluate_together(
    task: Task,
    merged_params: Sequence[Params],
    client_datasets: Sequence[ClientDataset],
    max_length: int,
) -> list[Evaluated]:
    """Both splits of every client with its own merged parameters, in the order given."""
    entries = [
        _entry(task, client_params, client_data, max_length)
        for client_params, client_data in zip(merged_params, client_datasets, strict=True)
    ]
    results: dict[int, Evaluated] = {}
    for entry_group in group_by_size(
        {i: _size(client_entry) for i, client_entry in enumerate(entries)}
    ):
        group_entries = [entries[i] for i in entry_group]
        scores = _scores(task, group_entries)
        results |= {
            i: _evaluate(entries[i], entry_scores)
            for i, entry_scores in zip(entry_group, scores, strict=True)
        }
    return [results[index] for index in range(len(client_datasets))]


def _entry(task: Task, client_params: Params, client_data: ClientDataset, max_length: int) -> Entry:
    histories = [user.history(split) for split in SPLITS for user in client_data.users]
    times = [user.history_times(split) for split in SPLITS for user in client_data.users]
    read_histories = what_is_read(task, histories, times, max_length)
    user_rows = torch.arange(1, len(client_data.users) + 1).repeat(len(SPLITS))
    candidates = task.items.candidates(client_data)
    if ITEMS in task.partition.private:
        item_rows, item_table = with_unseen(
            task, client_params[ITEMS], client_data, read_histories.codes
        )
        client_params = {**client_params, ITEMS: item_table}
    else:
        item_rows = row_numbers(read_histories.codes, candidates)
    read_parts = (
        item_rows,
        read_histories.times,
        read_histories.lengths,
        SequenceContext(read_histories.split_at, user_rows),
    )
    return Entry(
        client_data, client_params, *read_parts, candidates, client_item_index(task, client_data)
    )


def _size(client_entry: Entry) -> Size:
    num_rows, num_positions = client_entry.rows.shape
    num_items = max(len(client_entry.candidates) + 1, len(client_entry.params.get(ITEMS, ())))
    return Size(num_rows, num_positions, num_items, parameters_of(client_entry.params, num_items))


@torch.no_grad()
def _scores(task: Task, entries: Sequence[Entry]) -> list[Tensor]:
    """What every history gives a client's candidates, (2U, V') for each entry."""
    stacked_params = stack_params([client_entry.params for client_entry in entries])
    stacked_models = vmap(task.items.materialize)(
        stacked_params, stack_rows([client_entry.table for client_entry in entries])
    )
    item_rows = pad_together([client_entry.rows for client_entry in entries])
    padded_times = pad_known([client_entry.times for client_entry in entries])
    parts = zip(*(client_entry.context for client_entry in entries), strict=True)
    context = SequenceContext(*map(pad_and_stack, parts))
    vmap_dims = (0, 0, None, None if padded_times is None else 0, 0)
    hidden_states = vmap(task.model.apply, in_dims=vmap_dims)(
        stacked_models, item_rows, None, padded_times, context
    )
    parts = zip(hidden_states.unbind(), stacked_models[ITEMS].unbind(), entries, strict=True)
    return [
        entry_hidden[torch.arange(len(client_entry.rows)), (client_entry.lengths - 1).clamp(min=0)]
        @ item_table[1 : len(client_entry.candidates) + 1].T
        for entry_hidden, item_table, client_entry in parts
    ]


def _evaluate(client_entry: Entry, scores: Tensor) -> Evaluated:
    client_data, item_codes = client_entry.data, client_entry.candidates.numpy()
    split_parts = zip(SPLITS, np.split(scores.numpy(), len(SPLITS)), strict=True)
    return {
        split: _of_split(client_data, split, item_codes, split_scores)
        for split, split_scores in split_parts
    }


def _of_split(
    client_data: ClientDataset,
    split: HeldOut,
    item_codes: ItemArray,
    user_scores: NDArray[np.float32],
) -> ClientEvaluation:
    user_pairs = list(zip(client_data.users, user_scores, strict=True))
    num_items = client_data.catalogue_size
    rank_pairs = np.array(
        [
            rank_among(score, item_codes, user.target(split), user.history(split), num_items)
            for user, score in user_pairs
        ],
        np.int64,
    )
    sampled_ranks = None
    if client_data.sampled:
        rival_pairs = zip(user_pairs, client_data.rivals, strict=True)
        rank_list = [
            rank_in_sample(s, item_codes, u.target(split), rivals) for (u, s), rivals in rival_pairs
        ]
        sampled_ranks = np.array(rank_list, np.int64)
    return evaluation_of(client_data, split, rank_pairs[:, 0], rank_pairs[:, 1], sampled_ranks)
