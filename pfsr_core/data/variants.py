"""Items that are one product under several ids, found by the reviews that they have in common.

Shops file a product's sizes and colours as items of their own and show one review under all of
them, so that a log holds the same purchase several times. Then the held-out item is often a variant
of one in the history, and counting co-occurrence answers better than any model of behaviour.

Two items are variants where the sets of their reviews, (user, time, rating), have a Jaccard index
of at least a bar and ``FEWEST_SHARED`` reviews in common, in any one market; so are the variants of
variants. All of a group become the item whose raw id sorts first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions

FEWEST_SHARED = 3
RATINGS = ("rate", "rating", "stars", "score")

Codes = NDArray[np.int64]


def variant_groups(log: Interactions, jaccard: float, markets: Codes) -> Codes:
    """For every item code the code of the item it becomes, itself where it has no variant: (V+1,).

    ``markets`` (N,) numbers the market of each row: nothing is compared across markets, but what
    any of them joins is joined. Raises DataError for a log without times, in which no two reviews
    are alike.
    """
    if not log.has_times:
        raise DataError(
            f"{log.source} has no times, and variants are known by reviews of one time. Fix: "
            f"data.join-variants = 0.0, or data with times."
        )
    reviews = _numbered(log.users, log.timestamps, *_ratings(log))
    pairs = [
        _similar_pairs(reviews[markets == market], log.items[markets == market], jaccard)
        for market in np.unique(markets)
    ]
    return _joined(log.item_ids, np.concatenate([np.empty((2, 0), np.int64), *pairs], axis=1))


def _ratings(log: Interactions) -> list[NDArray[np.str_]]:
    return [log.columns[name] for name in RATINGS if name in log.columns][:1]


def _numbered(*columns: NDArray[np.generic]) -> Codes:
    """A number for every distinct row of the columns: (N,)."""
    number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        number = np.unique(number * len(values) + code, return_inverse=True)[1]
    return number


def _similar_pairs(reviews: Codes, items: Codes, jaccard: float) -> Codes:
    """Pairs of item codes (2, P) whose sets of reviews are alike enough."""
    size = int(items.max(initial=0)) + 1
    distinct = np.unique(reviews * size + items)
    reviews, items = distinct // size, distinct % size
    shared = [first * size + second for first, second in _within_reviews(reviews, items)]
    keys, both = np.unique(np.concatenate([np.empty(0, np.int64), *shared]), return_counts=True)
    first, second = keys // size, keys % size
    count = np.bincount(items, minlength=size)
    either = count[first] + count[second] - both
    alike = (both >= FEWEST_SHARED) & (both >= jaccard * either)
    return np.stack([first[alike], second[alike]])


def _within_reviews(reviews: Codes, items: Codes) -> Iterator[tuple[Codes, Codes]]:
    """All pairs of items that stand under one review, by their distance in the sorted rows."""
    for step in range(1, len(reviews)):
        same = reviews[step:] == reviews[:-step]
        if not same.any():
            return
        yield items[:-step][same], items[step:][same]


def _joined(item_ids: tuple[str, ...], pairs: Codes) -> Codes:
    """The first of its connected component, in the order of raw ids, for every code: (V+1,)."""
    order = np.concatenate([[0], np.argsort(np.array(item_ids, np.str_), kind="stable") + 1])
    rank = np.argsort(order)
    first, second = rank[pairs]
    label = np.arange(len(order))
    before = np.empty(0, np.int64)
    while not np.array_equal(before, label):
        before = label.copy()
        lowest = np.minimum(label[first], label[second])
        np.minimum.at(label, label[first], lowest)
        np.minimum.at(label, label[second], lowest)
        label = label[label]
    joined: Codes = order[label[rank]]
    return joined
