"""Items that are one product under several ids, found by the reviews that they have in common.

Shops file a product's sizes and colours as items of their own and show one review under all of
them, so that a log holds the same purchase several times. Then the held-out item is often a variant
of one in the history, and counting co-occurrence answers better than any model of behaviour.

Two items are variants where the sets of their reviews, (user, time, rating), have a Jaccard index
of at least a threshold and ``FEWEST_SHARED`` reviews in common, in any one market; so are the
variants of variants. All of a group become the item whose raw id sorts first.
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


def variant_groups(interactions: Interactions, jaccard: float, markets: Codes) -> Codes:
    """For every item code the code of the item it becomes, itself where it has no variant: (V+1,).

    ``markets`` (N,) numbers the market of each row: nothing is compared across markets, but what
    any of them joins is joined. Raises DataError for a log without times, in which no two reviews
    are alike.
    """
    if not interactions.has_times:
        raise DataError(
            f"{interactions.source} has no times, and variants are known by reviews of one time. "
            f"Fix: data.join-variants = 0.0, or data with times."
        )
    columns = interactions.columns
    ratings = [columns[name] for name in RATINGS if name in columns][:1]
    reviews = _number_rows(interactions.users, interactions.timestamps, *ratings)
    pairs = [
        _similar_pairs(reviews[markets == market], interactions.items[markets == market], jaccard)
        for market in np.unique(markets)
    ]
    return _connected_components(
        interactions.item_ids, np.concatenate([np.empty((2, 0), np.int64), *pairs], axis=1)
    )


def _number_rows(*columns: NDArray[np.generic]) -> Codes:
    """A number for every distinct row of the columns: (N,)."""
    row_number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, code = np.unique(column, return_inverse=True)
        row_number = np.unique(row_number * len(values) + code, return_inverse=True)[1]
    return row_number


def _similar_pairs(reviews: Codes, items: Codes, jaccard: float) -> Codes:
    """Pairs of item codes (2, P) whose sets of reviews are alike enough."""
    num_codes = int(items.max(initial=0)) + 1
    distinct = np.unique(reviews * num_codes + items)
    reviews, items = distinct // num_codes, distinct % num_codes
    pair_keys = [first * num_codes + second for first, second in _within_reviews(reviews, items)]
    keys, shared_counts = np.unique(
        np.concatenate([np.empty(0, np.int64), *pair_keys]), return_counts=True
    )
    first, second = keys // num_codes, keys % num_codes
    review_counts = np.bincount(items, minlength=num_codes)
    union_sizes = review_counts[first] + review_counts[second] - shared_counts
    is_variant = (shared_counts >= FEWEST_SHARED) & (shared_counts >= jaccard * union_sizes)
    return np.stack([first[is_variant], second[is_variant]])


def _within_reviews(reviews: Codes, items: Codes) -> Iterator[tuple[Codes, Codes]]:
    """All pairs of items that stand under one review, by their distance in the sorted rows."""
    for step in range(1, len(reviews)):
        same = reviews[step:] == reviews[:-step]
        if not same.any():
            return
        yield items[:-step][same], items[step:][same]


def _connected_components(item_ids: tuple[str, ...], pairs: Codes) -> Codes:
    """The first of its connected component, in the order of raw ids, for every code: (V+1,)."""
    codes_by_id = np.concatenate([[0], np.argsort(np.array(item_ids, np.str_), kind="stable") + 1])
    rank_of_code = np.argsort(codes_by_id)
    first_ranks, second_ranks = rank_of_code[pairs]
    component_of = np.arange(len(codes_by_id))
    last_components = np.empty(0, np.int64)
    while not np.array_equal(last_components, component_of):
        last_components = component_of.copy()
        lowest = np.minimum(component_of[first_ranks], component_of[second_ranks])
        np.minimum.at(component_of, component_of[first_ranks], lowest)
        np.minimum.at(component_of, component_of[second_ranks], lowest)
        component_of = component_of[component_of]
    joined_codes: Codes = codes_by_id[component_of[rank_of_code]]
    return joined_codes
