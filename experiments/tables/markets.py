"""The tables of the market arms.

Test NDCG@10 of each market by arm and part, paired bootstrap intervals over the users of a market
(per user the mean over seeds), what markets ship, and the cosines of their updates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.arms.markets import PRETRAINED, SHIPS, START, is_market_arm
from experiments.tables.comparison import Record, Records, common_seeds
from pfsr_core.algorithms.fecosr import FEDERATED, LOCAL
from pfsr_core.evaluation.bootstrap import Interval, paired_bootstrap
from pfsr_core.evaluation.ranking import per_user

Part = tuple[str, str]
"""(arm, part)"""

LOSS = -0.005  # of NDCG@10: a market loses where the interval's lower end is below
CLAIMS: tuple[tuple[str, Part, Part], ...] = (
    ("federated, not local", ("fecosr", FEDERATED), ("fecosr", LOCAL)),
    ("shipped, not local", ("fecosr", SHIPS), ("fecosr", LOCAL)),
    ("many to many, not one to one", ("fecosr", FEDERATED), ("one to one", SHIPS)),
    (
        "many to many, not one to one, hard targets",
        ("fecosr, cross-entropy", FEDERATED),
        ("one to one", SHIPS),
    ),
    ("soft targets, not hard ones", ("fecosr", FEDERATED), ("fecosr, cross-entropy", FEDERATED)),
    (
        "soft targets, not hard ones, pretrained",
        ("fecosr", PRETRAINED),
        ("fecosr, cross-entropy", PRETRAINED),
    ),
    ("finetuned, not pretrained", ("fecosr", FEDERATED), ("fecosr", PRETRAINED)),
    ("federated, not pooled", ("fecosr", FEDERATED), ("pooled", SHIPS)),
    ("federated, not PFSR", ("fecosr", FEDERATED), ("pfsr", PRETRAINED)),
    ("federated, not item-kNN", ("fecosr", FEDERATED), ("baselines", "item-knn-shrunk")),
    (
        "federated, not pooled item-kNN",
        ("fecosr", FEDERATED),
        ("baselines", "pooled item-knn-shrunk"),
    ),
    ("federated, not Markov", ("fecosr", FEDERATED), ("baselines", "markov")),
)


ALL_PARTS = (PRETRAINED, SHIPS, FEDERATED, LOCAL)
SHOWN: Mapping[str, Sequence[str]] = {
    "baselines": ("popularity", "item-knn-shrunk", "markov", "pooled item-knn-shrunk"),
    "fecosr": ALL_PARTS,
    "fecosr, all but the adapter": (SHIPS, FEDERATED),
    "fecosr, cross-entropy": (SHIPS, FEDERATED),
    "fecosr, share 1": (PRETRAINED, SHIPS),
    "fed-avg, adapters in the rounds": (PRETRAINED,),
    "pfsr": (PRETRAINED,),
}
"""Parts of an arm that have a row in the report. Of other arms it is what the markets ship."""


def load_market_records(records: Iterable[Record]) -> Records:
    """Groups the records of market arms by arm, without the prefix of all of them, and seed.

    Args:
        records: A :class:`experiments.records.RecordStore`, or records that were read from one.
    """
    found: dict[str, dict[int, Record]] = defaultdict(dict)
    for record in records:
        if is_market_arm(record["arm"]):
            found[record["arm"].removeprefix(START)][record["seed"]] = record
    return dict(found)


def markets_of(records: Records) -> list[str]:
    """The markets, the one with the most users first."""
    for _, _, part in _parts(records):
        return sorted(part, key=lambda market: -part[market]["users"])
    return []


def _parts(records: Records) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(arm, part, markets) of the first seed of every arm."""
    for arm, by_seed in records.items():
        first = next(iter(by_seed.values()))
        yield from ((arm, part, found) for part, found in first["parts"].items())


def market_table(records: Records, shown: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Test NDCG@10 of every market, means over the seeds; the last column is the mean of these.

    Args:
        records: Of market arms.
        shown: As :data:`SHOWN`; all parts by default.
    """
    markets = markets_of(records)
    head = ["arm", "part", "seeds", *(_short(market) for market in markets), "mean"]
    lines = [_row(head), _row(["---"] * len(head))]
    for arm, part, _ in _parts(records):
        if shown is not None and part not in shown.get(arm, (SHIPS,)):
            continue
        seeds = [record["parts"][part] for record in records[arm].values()]
        means = [float(np.mean([found[market]["test"] for found in seeds])) for market in markets]
        figures = [f"{value:.4f}" for value in (*means, float(np.mean(means)))]
        lines.append(_row([arm, part, str(len(seeds)), *figures]))
    return lines


def claim_table(records: Records) -> list[str]:
    """Differences of test NDCG@10 with 95 % intervals by market; * leaves zero out."""
    markets = markets_of(records)
    head = ["difference", "seeds", *(_short(market) for market in markets)]
    lines = [_row(head), _row(["---"] * len(head))]
    for claim, a, b in CLAIMS:
        seeds = common_seeds(records, a[0], b[0])
        if seeds:
            cells = [_cell(compare_market(records, a, b, market, seeds)) for market in markets]
            lines.append(_row([claim, str(len(seeds)), *cells]))
    return lines


def compare_market(
    records: Records, a: Part, b: Part, market: str, seeds: Sequence[int]
) -> Interval:
    """Paired bootstrap of ``a - b`` over the users of a market, seeds averaged."""
    users = sorted(records[a[0]][seeds[0]]["parts"][a[1]][market]["ranks"])

    def values(arm: str, part: str) -> NDArray[np.float64]:
        found = [records[arm][seed]["parts"][part][market]["ranks"] for seed in seeds]
        return np.stack([per_user(np.array([r[u] for u in users]), "ndcg@10") for r in found])

    return paired_bootstrap(values(*a), values(*b))


def cosine_table(records: Records) -> list[str]:
    """Mean pairwise cosine of the markets' updates in the first round and over all rounds."""
    pair = "fecosr", "fecosr, cross-entropy"
    seeds = common_seeds(records, *pair)
    lines = [
        "| seed | soft, round 1 | hard, round 1 | soft, all rounds | hard, all rounds |",
        "|---|---|---|---|---|",
    ]
    for seed in seeds:
        found = [records[arm][seed]["cosines"] for arm in pair]
        first = [cosines["1"] for cosines in found]
        whole = [float(np.mean(list(cosines.values()))) for cosines in found]
        lines.append(_row([str(seed), *(f"{value:.3f}" for value in (*first, *whole))]))
    return lines


def shipping_table(records: Records) -> list[str]:
    """At how many seeds each market ships the federated result."""
    markets = markets_of(records)
    lines = [_row(["arm", *map(_short, markets)]), _row(["---"] * (len(markets) + 1))]
    for arm, by_seed in records.items():
        asked = [r["ships_federated"] for r in by_seed.values() if r.get("ships_federated")]
        if asked:
            counts = [sum(ships[market] for ships in asked) for market in markets]
            lines.append(_row([arm, *(f"{count:g} of {len(asked)}" for count in counts)]))
    return lines


def report(records: Records) -> str:
    """All tables, and in the first one what :data:`SHOWN` names; empty without records."""
    parts = [
        market_table(records, SHOWN),
        claim_table(records),
        shipping_table(records),
        ["Mean pairwise cosine of the markets' updates:"],
        cosine_table(records),
    ]
    return "\n\n".join("\n".join(lines) for lines in parts) if records else ""


def _short(market: str) -> str:
    return market.removeprefix("market-")


def _cell(found: Interval) -> str:
    sure = "*" if found.low > 0 or found.high < 0 else ""
    worse = " (may lose)" if found.low < LOSS else ""
    return f"{found.difference:+.4f}{sure} [{found.low:+.4f}, {found.high:+.4f}]{worse}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
