"""Records by arm and seed, and paired comparisons of arms: what all tables are made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfsr_core.evaluation.bootstrap import Interval, paired_bootstrap
from pfsr_core.evaluation.ranking import per_user

Record = Mapping[str, Any]
Records = Mapping[str, Mapping[int, Record]]
"""arm -> seed -> record"""


def load_records(records: Iterable[Record]) -> Records:
    """Groups records by arm and seed; each baseline becomes an arm of its own.

    Args:
        records: A :class:`experiments.records.RecordStore`, or records that were read from one.
    """
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record["arm"] != "baselines":
            found[record["arm"]][record["seed"]] = record
            continue
        for place in ("client", "central"):
            for name, result in record[place].items():
                found[f"{place} {name}"][record["seed"]] = {**record, **result}
    return dict(found)


def common_seeds(records: Records, a: str, b: str) -> list[int]:
    """The seeds that both arms were run at, sorted; empty where an arm is missing."""
    return sorted(set(records.get(a, {})) & set(records.get(b, {})))


def user_matrix(by_seed: Mapping[int, Record], users: Sequence[str]) -> NDArray[np.float64]:
    """Test NDCG@10 of each user, one row per seed: (S, U), columns in the order of ``users``."""
    rows = [[record["ranks"][user] for user in users] for _, record in sorted(by_seed.items())]
    return np.stack([per_user(np.array(row), "ndcg@10") for row in rows])


def compare(records: Records, a: str, b: str) -> Interval | None:
    """Paired bootstrap of the test NDCG@10 of ``a - b`` over users, seeds averaged first.

    Returns:
        The difference with its interval; None unless both arms were run at one seed.
    """
    seeds = common_seeds(records, a, b)
    if not seeds:
        return None
    users = sorted(records[a][seeds[0]]["ranks"])
    left, right = (
        user_matrix({seed: records[arm][seed] for seed in seeds}, users) for arm in (a, b)
    )
    return paired_bootstrap(left, right)


def pair_table(records: Records, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """One row for each pair of arms that were both run: the difference and what it shows."""
    lines = ["| difference in test NDCG@10 | mean | 95 % interval | |", "|---|---|---|---|"]
    for a, b in pairs:
        interval = compare(records, a, b)
        if interval is not None:
            lines.append(
                f"| {a} - {b} | {interval.difference:+.4f} "
                f"| [{interval.low:+.4f}, {interval.high:+.4f}] | {_verdict(interval)} |"
            )
    return lines


def commits_of(records: Records) -> str:
    """The commits that the records were made at, sorted and separated by commas."""
    return ", ".join(sorted({r["commit"] for seeds in records.values() for r in seeds.values()}))


def _verdict(interval: Interval) -> str:
    if interval.low > 0:
        return "above"
    return "below" if interval.high < 0 else "no difference shown"
