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
    task: Task, models: Sequence[Params], clients: Sequence[ClientDataset], max_length: int
) -> list[Evaluated]:
    """Both splits of every client with its own merged parameters, in the order given."""
    entries = [
        _entry(task, model, data, max_length) for model, data in zip(models, clients, strict=True)
    ]
    results: dict[int, Evaluated] = {}
    for group in group_by_size({i: _size(entry) for i, entry in enumerate(entries)}):
        chosen = [entries[i] for i in group]
        scores = _scores(task, chosen)
        results |= {i: _evaluate(entries[i], part) for i, part in zip(group, scores, strict=True)}
    return [results[index] for index in range(len(clients))]


def _entry(task: Task, model: Params, data: ClientDataset, max_length: int) -> Entry:
    histories = [user.history(split) for split in SPLITS for user in data.users]
    times = [user.history_times(split) for split in SPLITS for user in data.users]
    read = what_is_read(task, histories, times, max_length)
    users = torch.arange(1, len(data.users) + 1).repeat(len(SPLITS))
    candidates = task.items.candidates(data)
    if ITEMS in task.partition.private:
        rows, table = with_unseen(task, model[ITEMS], data, read.codes)
        model = {**model, ITEMS: table}
    else:
        rows = row_numbers(read.codes, candidates)
    parts = (rows, read.times, read.lengths, SequenceContext(read.split_at, users))
    return Entry(data, model, *parts, candidates, client_item_index(task, data))


def _size(entry: Entry) -> Size:
    rows, length = entry.rows.shape
    items = max(len(entry.candidates) + 1, len(entry.params.get(ITEMS, ())))
    return Size(rows, length, items, parameters_of(entry.params, items))


@torch.no_grad()
def _scores(task: Task, entries: Sequence[Entry]) -> list[Tensor]:
    """What every history gives a client's candidates, (2U, V') for each entry."""
    stacks = stack_params([entry.params for entry in entries])
    models = vmap(task.items.materialize)(stacks, stack_rows([entry.table for entry in entries]))
    items = pad_together([entry.rows for entry in entries])
    times = pad_known([entry.times for entry in entries])
    parts = zip(*(entry.context for entry in entries), strict=True)
    context = SequenceContext(*map(pad_and_stack, parts))
    dims = (0, 0, None, None if times is None else 0, 0)
    hidden = vmap(task.model.apply, in_dims=dims)(models, items, None, times, context)
    parts = zip(hidden.unbind(), models[ITEMS].unbind(), entries, strict=True)
    return [
        part[torch.arange(len(entry.rows)), (entry.lengths - 1).clamp(min=0)]
        @ table[1 : len(entry.candidates) + 1].T
        for part, table, entry in parts
    ]


def _evaluate(entry: Entry, scores: Tensor) -> Evaluated:
    data, items = entry.data, entry.candidates.numpy()
    parts = zip(SPLITS, np.split(scores.numpy(), len(SPLITS)), strict=True)
    return {split: _of_split(data, split, items, part) for split, part in parts}


def _of_split(
    data: ClientDataset, split: HeldOut, items: ItemArray, scores: NDArray[np.float32]
) -> ClientEvaluation:
    pairs, size = list(zip(data.users, scores, strict=True)), data.catalogue_size
    ranks = np.array(
        [
            rank_among(score, items, user.target(split), user.history(split), size)
            for user, score in pairs
        ],
        np.int64,
    )
    sampled = None
    if data.sampled:
        those = zip(pairs, data.rivals, strict=True)
        found = [rank_in_sample(s, items, u.target(split), rivals) for (u, s), rivals in those]
        sampled = np.array(found, np.int64)
    return evaluation_of(data, split, ranks[:, 0], ranks[:, 1], sampled)
