"""A task: the model as functions of parameters, and everything about it that training reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.items.soft_targets import SoftTargetsOf
from pfsr_core.items.tables import item_rows
from pfsr_core.models.compressors import latest
from pfsr_core.models.next_item import Apply, Compress, Recall
from pfsr_core.params import Params, Partition


def as_they_are(params: Params, _rows: Params) -> Params:
    """Parameters that the model takes as a client holds them."""
    return params


@dataclass(frozen=True)
class Serving:
    """How a model serves from what it remembers of a user.

    The functions are those of :class:`pfsr_core.models.compressors.Memory`, of parameters and item
    codes in place of embedded items.
    """

    begin: Callable[[int, int | None], int]
    compress: Compress
    recall: Recall


@dataclass(frozen=True)
class Task:
    """A model as an algorithm sees it: functions of parameters, and who owns which of them.

    ``candidates(data)``: sorted item codes that a client ranks (V',), whose rows follow the padding
    row in its item table (V' + 1, D): its catalogue, or with private item tables the items its own
    users touched.
    ``unseen_rows(data, codes)`` (n, D): what other items, which a history may hold, start with.
    ``effective(params, rows)``: all parameters of a client as ``apply`` takes them, with one item
    table (V' + 1, D); ``rows`` are those of :func:`client_rows`.
    ``averaged``: shared names that are averaged whole: no mask keeps part of them local.
    ``noise_width``: random numbers that dropout takes at every position; 0 without dropout.
    ``soft_targets(candidates)``: who shares an item's probability in the loss; None for nobody.
    ``places``: positions that the model adds to every row, for tokens; a row is then cut at random
    in training. ``first_read(length, max_length)``: the first item read of a history;
    ``cuts(lengths)``: how many of what is read are old. ``serving``: None where every answer reads
    the history anew.
    ``reads_times``: whether ``apply`` makes use of times; elsewhere none are prepared.
    """

    apply: Apply
    noise_width: int
    partition: Partition
    init_shared: Callable[[], Params]
    init_private: Callable[[ClientDataset], Params]
    candidates: Callable[[ClientDataset], Tensor]
    unseen_rows: Callable[[ClientDataset, ItemArray], Tensor]
    effective: Callable[[Params, Params], Params] = as_they_are
    averaged: frozenset[str] = frozenset()
    soft_targets: SoftTargetsOf | None = None
    places: int = 0
    first_read: Callable[[int, int], int] = latest
    cuts: Callable[[Tensor], Tensor] = torch.zeros_like
    serving: Serving | None = None
    reads_times: bool = False


def client_rows(task: Task, data: ClientDataset) -> Params:
    """:func:`item_rows` of a client, whose private item tensor has the items it touched."""
    return item_rows(data.touched, task.candidates(data), data.own_catalogue)
