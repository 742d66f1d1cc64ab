"""Long histories as a table for people: every kind of reading, for all users and for long ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.arms.histories import KINDS, PLACES
from experiments.tables.comparison import Record, Records, commits_of
from pfsr_core.evaluation.bootstrap import paired_bootstrap
from pfsr_core.evaluation.ranking import per_user

METRIC = "ndcg@10"
HEADER = (
    "| where | reads | seeds | NDCG@10 | NDCG@10, long histories (users) | HR@10, long | CPU s |",
    "|---|---|---|---|---|---|---|",
)
PAIRS = (
    ("sasrec with tokens", "sasrec reads 200"),
    ("sasrec with tokens", "sasrec reads 50"),
    ("sasrec with tokens of its own", "sasrec with tokens"),
    ("sasrec reads 200", "sasrec reads 50"),
    ("gru4rec's state", "gru4rec reads 50"),
    ("associative state", "associative reads 50"),
    ("gru4rec's state", "gru4rec's state, trained on 50"),
    ("associative state", "associative state, trained on 50"),
    ("associative state", "sasrec with tokens"),
)
TEXT_PAIRS = (  # places, of the same kind
    ("histories, central, wordllama", "histories, central"),
    ("histories, central, wordllama", "histories, central, tf-idf"),
    ("histories, central, wordllama alone", "histories, central, tf-idf alone"),
)


def is_history_arm(arm: str) -> bool:
    """Whether the arm is in this table, and the one of the ablation leaves it out."""
    return arm.startswith(tuple(PLACES))


def report(records: Records) -> str:
    """All tables of long histories; empty where no arm of them was run."""
    rows = histories_table(records)
    commits = commits_of({arm: by_seed for arm, by_seed in records.items() if is_history_arm(arm)})
    parts = [
        "Long histories. *Reads*: how many items, or what stands for the older ones. Users "
        "with few items are read whole in every row; long are 200 items or more, and all "
        f"histories where the oldest items decide. The arms ran at commits {commits}.",
        "\n".join(rows),
        "\n".join(histories_pairs(records)),
    ]
    return "\n\n".join(parts) if rows else ""


def histories_table(records: Records) -> list[str]:
    """One row for each place and kind that was run: test means over users and seeds."""
    lines = [
        _row(place, kind, records[arm])
        for place in PLACES
        for kind in KINDS
        if (arm := f"{place}, {kind}") in records
    ]
    return [*HEADER, *lines] if lines else []


def histories_pairs(records: Records) -> list[str]:
    """Differences, intervals of 95 %, seeds averaged first.

    Between kinds among users with long histories, between places among all.
    """
    kinds = [
        f"| {_short(place)}: {a} minus {b} | {_difference(left, right, place)} |"
        for place in PLACES
        for a, b in PAIRS
        if (left := records.get(f"{place}, {a}")) and (right := records.get(f"{place}, {b}"))
    ]
    texts = [
        f"| {kind}, all users: {_short(a)} minus {_short(b)} | {_difference(left, right)} |"
        for kind in KINDS
        for a, b in TEXT_PAIRS
        if (left := records.get(f"{a}, {kind}")) and (right := records.get(f"{b}, {kind}"))
    ]
    heading = "| NDCG@10, long histories where nothing else is said | difference [interval] |"
    return [heading, "|---|---|", *kinds, *texts]


def long_users(place: str, record: Record) -> list[str]:
    """Raw ids of the users with at least ``long_from`` items before the test item, sorted."""
    least = PLACES[place].long_from
    return sorted(user for user, length in record["lengths"].items() if length >= least)


def _row(place: str, kind: str, by_seed: Mapping[int, Record]) -> str:
    records = [record for _, record in sorted(by_seed.items())]
    everybody = [list(record["lengths"]) for record in records]
    chosen = [long_users(place, record) for record in records]
    cells = [
        _short(place),
        kind,
        str(len(records)),
        f"{_mean(records, everybody, METRIC):.4f}",
        f"{_mean(records, chosen, METRIC):.4f} ({len(chosen[0])})",
        f"{_mean(records, chosen, 'hr@10'):.3f}",
        f"{np.mean([record['cpu_seconds'] for record in records]):.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _short(place: str) -> str:
    return place.removeprefix("histories, ")


def _mean(records: Sequence[Record], users: Sequence[Sequence[str]], metric: str) -> float:
    pairs = zip(records, users, strict=True)
    return float(np.mean([_values(record, chosen, metric).mean() for record, chosen in pairs]))


def _values(record: Record, users: Sequence[str], metric: str) -> np.ndarray[Any, Any]:
    return per_user(np.array([record["ranks"][user] for user in users]), metric)


def _difference(a: Mapping[int, Record], b: Mapping[int, Record], place: str = "") -> str:
    """Among the long histories of ``place``, or all."""
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return "no seed in common"
    users = long_users(place, a[seeds[0]]) if place else sorted(a[seeds[0]]["lengths"])
    left, right = (np.stack([_values(arm[s], users, METRIC) for s in seeds]) for arm in (a, b))
    found = paired_bootstrap(left, right)
    return f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
