"""From a log as it was read to the log that is split: markets, variants, repetitions, cores.

In this order: variants joined (:mod:`pfsr_core.data.variants`); of interactions that then repeat a
user, item and time the first in the file kept; users and items with enough interactions, counted
within each market; the markets that take part. But for the joined items a market needs nobody
else's data, and a node that owns its market joins what its own reviews show.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfsr_core.data.describe import tied_last_pair
from pfsr_core.data.errors import DataError
from pfsr_core.data.filters import k_core, take
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


def clean(log: Interactions, rules: Cleaning) -> Cleaned:
    """The log by ``rules``. Raises DataError for a column, a value or times that the log lacks."""
    item_map: dict[str, str] = {}
    if rules.join_variants:
        groups = variant_groups(log, rules.join_variants, market_codes(log, rules.column))
        item_map = {
            raw: log.item_ids[code - 1]
            for raw, code in zip(log.item_ids, groups[1:].tolist(), strict=True)
            if raw != log.item_ids[code - 1]
        }
        log = without_repeats(replace(log, items=groups[log.items]))
    if rules.user_core or rules.item_core:
        markets = market_codes(log, rules.column)
        log = k_core(log, rules.user_core, rules.item_core, markets)
    return Cleaned(keep_values(log, rules.column, rules.values), item_map)


def keep_values(log: Interactions, column: str, values: tuple[str, ...]) -> Interactions:
    """Rows whose ``column`` is one of ``values``; all of them where none are given."""
    if not values:
        return log
    cells = log.cells(column)
    missing = sorted(set(values) - set(np.unique(cells).tolist()))
    if missing:
        known = ", ".join(np.unique(cells).tolist()[:20])
        raise DataError(
            f"{log.source}: no interaction has {column} = {missing[0]!r}. "
            f"Fix: choose among {known}."
        )
    return take(log, np.isin(cells, values))


def without_repeats(log: Interactions) -> Interactions:
    """Of the interactions of one user with one item at one time the first in the file."""
    rows = np.stack([log.users, log.items, np.unique(log.timestamps, return_inverse=True)[1]])
    first = np.unique(rows, axis=1, return_index=True)[1]
    return take(log, np.sort(first))


def market_codes(log: Interactions, column: str) -> Codes:
    """The number of each row's value of ``column``: (N,); zeros without a column."""
    if not column:
        return np.zeros(len(log), np.int64)
    return np.unique(log.cells(column), return_inverse=True)[1].astype(np.int64)


def market_facts(log: Interactions, column: str, jaccard: float) -> Facts:
    """What cleaning is about, for each market of ``log`` by name ("all" without a column).

    ``users``, ``items``, ``interactions``; ``joined_groups``, how many groups of variants with a
    bar of ``jaccard`` its items are in; ``variant_targets``, the share of its users whose test item
    is a variant of another one in their history; ``tied_last_pair``, the share whose last two
    interactions have one timestamp. Both are None where no user has a test item.
    """
    groups = variant_groups(log, jaccard, market_codes(log, column))
    names = np.unique(log.cells(column)).tolist() if column else ["all"]
    return {name: _facts(log, column, name, groups) for name in names}


def _facts(log: Interactions, column: str, name: str, groups: Codes) -> dict[str, Any]:
    rows = log.columns[column] == name if column else np.ones(len(log), np.bool_)
    found, count = np.unique(groups[np.unique(log.items)], return_counts=True)
    here = np.unique(groups[log.items[rows]])
    part = take(log, rows)
    group_of = dict(zip(log.item_ids, groups[1:].tolist(), strict=True))
    own = np.array([0, *(group_of[raw] for raw in part.item_ids)])
    tested = np.bincount(part.users).max() >= FEWEST_INTERACTIONS
    return {
        "users": len(part.user_ids),
        "items": len(part.item_ids),
        "interactions": len(part),
        "joined_groups": int(np.isin(here, found[count > 1]).sum()),
        "variant_targets": _variant_targets(part, own) if tested else None,
        "tied_last_pair": tied_last_pair(part) if tested else None,
    }


def _variant_targets(log: Interactions, groups: Codes) -> float:
    """Share of the split's users whose test item has another one of its group in the history."""
    users = leave_one_out(log).users
    before = ((user.test, user.history("test")) for user in users)
    return float(
        np.mean([((groups[old] == groups[new]) & (old != new)).any() for new, old in before])
    )
