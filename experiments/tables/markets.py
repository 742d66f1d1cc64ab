"""The market arms as tables for people.

    python -m experiments.tables.markets --collection xmarket

Each market's test NDCG@10 by arm and part, paired bootstrap intervals over a market's users (per
user the mean over seeds), what markets ship, and how alike their updates are.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.arms.markets import PRETRAINED, SHIPS, START, is_market_arm
from experiments.records import MAIN, RECORDS, RecordStore
from pfsr_core.algorithms.fecosr import FEDERATED, LOCAL
from pfsr_core.evaluation.bootstrap import Interval, paired_bootstrap
from pfsr_core.evaluation.ranking import per_user

Records = Mapping[str, Mapping[int, Mapping[str, Any]]]
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


def load_market_records(store: RecordStore) -> Records:
    """The finished market arms: arm -> seed -> record."""
    records: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for record in store:
        if is_market_arm(record["arm"]):
            records[record["arm"].removeprefix(START)][record["seed"]] = record
    return dict(records)


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


def market_table(records: Records) -> list[str]:
    """Test NDCG@10 of every market, means over the seeds; the last column is the mean of these."""
    markets = markets_of(records)
    head = ["arm", "part", "seeds", *(_short(market) for market in markets), "mean"]
    lines = [_row(head), _row(["---"] * len(head))]
    for arm, part, _ in _parts(records):
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
        seeds = sorted(set(records.get(a[0], {})) & set(records.get(b[0], {})))
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
    seeds = sorted(set(records.get(pair[0], {})) & set(records.get(pair[1], {})))
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
    """All tables."""
    seconds = [r["cpu_seconds"] for by_seed in records.values() for r in by_seed.values()]
    parts = [
        f"{len(seconds)} runs, {sum(seconds) / 60:.0f} CPU minutes.",
        "Test NDCG@10, whole catalogue, history excluded:",
        "\n".join(market_table(records)),
        "Paired bootstrap over the users of each market:",
        "\n".join(claim_table(records)),
        "Markets that ship the federated result:",
        "\n".join(shipping_table(records)),
        "Mean pairwise cosine of the markets' updates:",
        "\n".join(cosine_table(records)),
    ]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="tables of the market arms")
    parser.add_argument("--records", type=Path, default=RECORDS, help="directory of the records")
    parser.add_argument("--collection", default=MAIN, help="of the records")
    options = parser.parse_args(argv)
    records = load_market_records(RecordStore(options.records, options.collection))
    sys.stdout.write(report(records) + "\n")
    return 0


def _short(market: str) -> str:
    return market.removeprefix("market-")


def _cell(found: Interval) -> str:
    sure = "*" if found.low > 0 or found.high < 0 else ""
    worse = " (may lose)" if found.low < LOSS else ""
    return f"{found.difference:+.4f}{sure} [{found.low:+.4f}, {found.high:+.4f}]{worse}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
