"""The item table that a client ranks with, as functions of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.params import Params


@dataclass(frozen=True)
class ItemFunctions:
    """The items of a client, and their vectors.

    Attributes:
        candidates: Sorted item codes that a client ranks (V',), whose rows follow the padding row
            in its item table (V' + 1, D): :func:`all_candidates`, or with private item tables
            :func:`own_candidates`.
        unseen_rows: ``(data, codes)`` to (n, D): what other items, which a history may hold, start
            with.
        materialize: ``(params, item_index)`` to all parameters of a client as the model takes them,
            with one item table (V' + 1, D); ``item_index``: which items the rows of its item
            tensors are of, as :func:`pfsr_core.items.tables.item_rows` makes it.
        averaged: Shared names that are averaged whole: no mask keeps part of them local.
    """

    candidates: Callable[[ClientDataset], Tensor]
    unseen_rows: Callable[[ClientDataset, ItemArray], Tensor]
    materialize: Callable[[Params, Params], Params]
    averaged: frozenset[str] = frozenset()


def all_candidates(client_data: ClientDataset) -> Tensor:
    """Sorted codes of all items that the client may rank: (V',)."""
    return torch.from_numpy(client_data.rankable_items)


def own_candidates(client_data: ClientDataset) -> Tensor:
    """Sorted codes of the items that the client's users touched: (V',)."""
    return torch.from_numpy(client_data.touched)
