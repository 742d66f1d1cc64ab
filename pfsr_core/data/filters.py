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
    item_keys = interactions.items
    if markets is not None:
        item_keys = markets * (len(interactions.item_ids) + 1) + item_keys
    has_dropped = True
    while has_dropped:
        is_frequent = _frequent(interactions.users, keep, user_core)
        is_frequent &= _frequent(item_keys, keep, item_core)
        has_dropped = bool((keep & ~is_frequent).any())
        keep &= is_frequent
    if not keep.any():
        raise DataError(
            f"{interactions.source}: no interaction is left with at least {user_core} a user and "
            f"{item_core} an item. Fix: lower the cores."
        )
    return select_rows(interactions, keep)


def select_rows(
    interactions: Interactions, rows: NDArray[np.bool_] | NDArray[np.int64]
) -> Interactions:
    """The given rows (mask (N,) or positions), with users and items numbered anew."""
    users, user_codes = renumber(interactions.users[rows])
    items, item_codes = renumber(interactions.items[rows])
    item_ids = tuple(interactions.item_ids[code - 1] for code in item_codes)
    return replace(
        interactions,
        users=users,
        items=items + 1,
        timestamps=interactions.timestamps[rows],
        user_ids=tuple(interactions.user_ids[code] for code in user_codes),
        item_ids=item_ids,
        titles=_texts_of_items(interactions.titles, item_ids),
        texts=_texts_of_items(interactions.texts, item_ids),
        columns={name: cells[rows] for name, cells in interactions.columns.items()},
    )


def _texts_of_items(text_by_item: Mapping[str, str], item_ids: Sequence[str]) -> dict[str, str]:
    return {item: text_by_item[item] for item in item_ids if item in text_by_item}


def _frequent(
    codes: NDArray[np.int64], keep: NDArray[np.bool_], least_count: int
) -> NDArray[np.bool_]:
    counts = np.bincount(codes[keep], minlength=int(codes.max(initial=0)) + 1)
    return np.asarray(counts[codes] >= least_count)


def renumber(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """New codes by first appearance, (n,), and the old code of each new one."""
    old_codes, first_rows, inverse = np.unique(codes, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first_rows)
    new_codes = np.empty(len(old_codes), np.int64)
    new_codes[by_appearance] = np.arange(len(old_codes))
    return new_codes[inverse], old_codes[by_appearance]
