"""Evaluation of many small clients as one program, each with its own model.

The ranks are those of :func:`pfsr_core.evaluation.client.evaluate_client` with the scorer of
:func:`pfsr_core.scoring.make_scorer`. Nothing of the catalogue's size is made for a client: it
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

from pfsr_core.batched_training import Size, pad_together, similar, stack_params
from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut, ItemArray
from pfsr_core.evaluation.client import ClientEvaluation, evaluation_of
from pfsr_core.evaluation.ranking import rank_among, rank_in_sample
from pfsr_core.local_training import Task
from pfsr_core.models.next_item import ITEMS, pad_right
from pfsr_core.params import Params
from pfsr_core.scoring import with_unseen

SMALL = 8  # users of a client up to which it is evaluated together with others

Evaluated = Mapping[HeldOut, ClientEvaluation]


@dataclass(frozen=True)
class Entry:
    """A client's model with a row for every item in ``rows`` (2U, L), of ``lengths`` (2U,).

    The users' histories before their validation items, then those before their test items.
    """

    data: ClientDataset
    params: Params
    rows: Tensor
    lengths: Tensor
    candidates: Tensor


def evaluate_together(
    task: Task, models: Sequence[Params], clients: Sequence[ClientDataset], max_length: int
) -> list[Evaluated]:
    """Both splits of every client with its own whole model, in the order given."""
    entries = [
        _entry(task, model, data, max_length) for model, data in zip(models, clients, strict=True)
    ]
    results: dict[int, Evaluated] = {}
    for group in similar({i: _size(entry) for i, entry in enumerate(entries)}):
        chosen = [entries[i] for i in group]
        last = _last_hidden(task, chosen)
        results |= {i: _evaluate(entries[i], hidden) for i, hidden in zip(group, last, strict=True)}
    return [results[index] for index in range(len(clients))]


def _entry(task: Task, model: Params, data: ClientDataset, max_length: int) -> Entry:
    histories = [user.history(split) for split in SPLITS for user in data.users]
    codes, lengths = pad_right(histories, max_length)
    rows, table = with_unseen(task, model[ITEMS], data, codes)
    return Entry(data, {**model, ITEMS: table}, rows, lengths, task.candidates(data))


def _size(entry: Entry) -> Size:
    parameters = sum(tensor.numel() for tensor in entry.params.values())
    rows, length = entry.rows.shape
    return Size(rows, length, len(entry.params[ITEMS]), parameters)


@torch.no_grad()
def _last_hidden(task: Task, entries: Sequence[Entry]) -> list[Tensor]:
    """What every history expects next, (2U, D) for each entry."""
    stacks = stack_params([entry.params for entry in entries])
    items = pad_together([entry.rows for entry in entries])
    hidden = vmap(task.apply, in_dims=(0, 0, None))(stacks, items, None)
    return [
        part[torch.arange(len(entry.rows)), (entry.lengths - 1).clamp(min=0)]
        for part, entry in zip(hidden.unbind(), entries, strict=True)
    ]


def _evaluate(entry: Entry, last: Tensor) -> Evaluated:
    data, items = entry.data, entry.candidates.numpy()
    scores = (last @ entry.params[ITEMS][1 : len(items) + 1].T).numpy()
    parts = zip(SPLITS, np.split(scores, len(SPLITS)), strict=True)
    return {split: _of_split(data, split, items, part) for split, part in parts}


def _of_split(
    data: ClientDataset, split: HeldOut, items: ItemArray, scores: NDArray[np.float32]
) -> ClientEvaluation:
    pairs = list(zip(data.users, scores, strict=True))
    ranks = np.array(
        [
            rank_among(score, items, user.target(split), user.history(split), data.num_items)
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
