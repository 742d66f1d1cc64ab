"""Filters of a log. Every one returns a new log whose codes are numbered by first appearance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions


def k_core(
    interactions: Interactions,
    user_core: int,
    item_core: int,
    markets: NDArray[np.int64] | None = None,
) -> Interactions:
    """Drops users and items with fewer interactions than their core until none is left to drop.

    ``markets`` (N,) numbers the market of each row: an item is then counted, and dropped, in each
    of them apart. Raises DataError when nothing remains. The result does not depend on the order of
    dropping.
    """
    keep = np.ones(len(interactions), np.bool_)
    items = interactions.items
    if markets is not None:
        items = markets * (len(interactions.item_ids) + 1) + items
    dropped = True
    while dropped:
        enough = _frequent(interactions.users, keep, user_core)
        enough &= _frequent(items, keep, item_core)
        dropped = bool((keep & ~enough).any())
        keep &= enough
    if not keep.any():
        raise DataError(
            f"{interactions.source}: no interaction is left with at least {user_core} a user and "
            f"{item_core} an item. Fix: lower the cores."
        )
    return take(interactions, keep)


def take(interactions: Interactions, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Interactions:
    """The given rows (mask (N,) or positions), with users and items numbered anew."""
    users, user_codes = _renumber(interactions.users[rows])
    items, item_codes = _renumber(interactions.items[rows])
    item_ids = tuple(interactions.item_ids[code - 1] for code in item_codes)
    return replace(
        interactions,
        users=users,
        items=items + 1,
        timestamps=interactions.timestamps[rows],
        user_ids=tuple(interactions.user_ids[code] for code in user_codes),
        item_ids=item_ids,
        titles=_of_items(interactions.titles, item_ids),
        texts=_of_items(interactions.texts, item_ids),
        columns={name: cells[rows] for name, cells in interactions.columns.items()},
    )


def _of_items(words: Mapping[str, str], item_ids: Sequence[str]) -> dict[str, str]:
    return {item: words[item] for item in item_ids if item in words}


def _frequent(codes: NDArray[np.int64], keep: NDArray[np.bool_], core: int) -> NDArray[np.bool_]:
    counts = np.bincount(codes[keep], minlength=int(codes.max(initial=0)) + 1)
    return np.asarray(counts[codes] >= core)


def _renumber(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """New codes by first appearance, (n,), and the old code of each new one."""
    old, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first)
    rank = np.empty(len(old), np.int64)
    rank[by_appearance] = np.arange(len(old))
    return rank[inverse], old[by_appearance]
