"""From a log as it was read to the log that is split: markets, variants, repetitions, cores.

In this order: variants joined (:mod:`pfsr_core.data.variants`); of interactions that then repeat a
user, item and time the first in the file kept; users and items with enough interactions, counted
within each market; the markets that take part. Joining aside, a market needs no other
market's data; a node that owns its market joins items by its own reviews.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfsr_core.data.describe import tied_last_pair
from pfsr_core.data.errors import DataError
from pfsr_core.data.filters import k_core, select_rows
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import FEWEST_INTERACTIONS, leave_one_out
from pfsr_core.data.variants import Codes, variant_groups

Facts = Mapping[str, Mapping[str, Any]]
"""Of :func:`market_facts`: numbers by name, by market."""


@dataclass(frozen=True)
class Cleaning:
    """What is done to a log; nothing by default.

    ``column`` tells markets apart, "" where there is one; ``values``: those that take part, all
    where it is empty. ``join_variants``: the bar of the Jaccard index, 0 joins nothing.
    """

    column: str = ""
    values: tuple[str, ...] = ()
    join_variants: float = 0.0
    user_core: int = 0
    item_core: int = 0


@dataclass(frozen=True)
class Cleaned:
    """``log``, and ``item_map``: raw id of an item that was joined -> raw id it has become."""

    log: Interactions
    item_map: Mapping[str, str]


def clean(interactions: Interactions, rules: Cleaning) -> Cleaned:
    """The log by ``rules``. Raises DataError for a column, a value or times that the log lacks."""
    item_map: dict[str, str] = {}
    if rules.join_variants:
        groups = variant_groups(
            interactions, rules.join_variants, market_codes(interactions, rules.column)
        )
        item_map = {
            raw: interactions.item_ids[code - 1]
            for raw, code in zip(interactions.item_ids, groups[1:].tolist(), strict=True)
            if raw != interactions.item_ids[code - 1]
        }
        interactions = without_repeats(replace(interactions, items=groups[interactions.items]))
    if rules.user_core or rules.item_core:
        markets = market_codes(interactions, rules.column)
        interactions = k_core(interactions, rules.user_core, rules.item_core, markets)
    return Cleaned(keep_values(interactions, rules.column, rules.values), item_map)


def keep_values(interactions: Interactions, column: str, values: tuple[str, ...]) -> Interactions:
    """Rows whose ``column`` is one of ``values``; all of them where none are given."""
    if not values:
        return interactions
    cells = interactions.cells(column)
    missing = sorted(set(values) - set(np.unique(cells).tolist()))
    if missing:
        known = ", ".join(np.unique(cells).tolist()[:20])
        raise DataError(
            f"{interactions.source}: no interaction has {column} = {missing[0]!r}. "
            f"Fix: choose among {known}."
        )
    return select_rows(interactions, np.isin(cells, values))


def without_repeats(interactions: Interactions) -> Interactions:
    """Of the interactions of one user with one item at one time the first in the file."""
    event_keys = np.stack(
        [
            interactions.users,
            interactions.items,
            np.unique(interactions.timestamps, return_inverse=True)[1],
        ]
    )
    first_rows = np.unique(event_keys, axis=1, return_index=True)[1]
    return select_rows(interactions, np.sort(first_rows))


def market_codes(interactions: Interactions, column: str) -> Codes:
    """The number of each row's value of ``column``: (N,); zeros without a column."""
    if not column:
        return np.zeros(len(interactions), np.int64)
    return np.unique(interactions.cells(column), return_inverse=True)[1].astype(np.int64)


def market_facts(interactions: Interactions, column: str, jaccard: float) -> Facts:
    """What cleaning is about, for each market of ``interactions`` by name ("all" without a column).

    ``users``, ``items``, ``interactions``; ``joined_groups``, how many groups of variants with a
    bar of ``jaccard`` its items are in; ``variant_targets``, the share of its users whose test item
    is a variant of another one in their history; ``tied_last_pair``, the share whose last two
    interactions have one timestamp. Both are None where no user has a test item.
    """
    groups = variant_groups(interactions, jaccard, market_codes(interactions, column))
    names = np.unique(interactions.cells(column)).tolist() if column else ["all"]
    return {name: _facts_of_market(interactions, column, name, groups) for name in names}


def _facts_of_market(
    interactions: Interactions, column: str, market_name: str, groups: Codes
) -> dict[str, Any]:
    in_market = (
        interactions.columns[column] == market_name
        if column
        else np.ones(len(interactions), np.bool_)
    )
    group_codes, group_sizes = np.unique(groups[np.unique(interactions.items)], return_counts=True)
    market_groups = np.unique(groups[interactions.items[in_market]])
    market_log = select_rows(interactions, in_market)
    group_of_id = dict(zip(interactions.item_ids, groups[1:].tolist(), strict=True))
    group_of_item = np.array([0, *(group_of_id[raw] for raw in market_log.item_ids)])
    has_targets = np.bincount(market_log.users).max() >= FEWEST_INTERACTIONS
    return {
        "users": len(market_log.user_ids),
        "items": len(market_log.item_ids),
        "interactions": len(market_log),
        "joined_groups": int(np.isin(market_groups, group_codes[group_sizes > 1]).sum()),
        "variant_targets": _variant_targets(market_log, group_of_item) if has_targets else None,
        "tied_last_pair": tied_last_pair(market_log) if has_targets else None,
    }


def _variant_targets(interactions: Interactions, groups: Codes) -> float:
    """Share of the split's users whose test item has another one of its group in the history."""
    users = leave_one_out(interactions).users
    target_pairs = ((user.test, user.history("test")) for user in users)
    return float(
        np.mean([((groups[old] == groups[new]) & (old != new)).any() for new, old in target_pairs])
    )
