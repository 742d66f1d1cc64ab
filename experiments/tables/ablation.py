"""The tables of the ablation: means over seeds, and what each part of the method is worth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from experiments.arms.items import PRIVATE_SIZES
from experiments.arms.markets import is_market_arm
from experiments.tables.comparison import (
    Record,
    Records,
    commits_of,
    common_seeds,
    pair_table,
    user_matrix,
)
from experiments.tables.histories import is_history_arm
from experiments.tables.items import is_item_arm
from pfsr_core.evaluation.bootstrap import paired_bootstrap

PAIRS = (
    ("pfsr", "local-only"),
    ("pfsr", "fed-avg"),
    ("fed-avg", "local-only"),
    ("pfsr", "vrm without dml"),
    ("vrm without dml", "fed-avg"),
    ("pfsr", "two-sided"),
    ("pfsr", "fed-avg, common start"),
    ("pfsr", "local-only, common start"),
    ("fed-avg", "fed-avg, common start"),
    ("local-only", "local-only, common start"),
    ("fed-avg, common start", "local-only, common start"),
    ("fed-avg, common start", "fed-avg, secret start"),
    ("pfsr", "client item-knn-recent"),
    ("pfsr", "client item-knn"),
    ("pfsr", "client markov"),
    ("pfsr", "client popularity"),
    ("pfsr", "fed-prox"),
    ("pfsr", "pfsr, as in FedDPA"),
    ("pfsr", "pfsr, serves the personal encoder"),
    ("pfsr", "pfsr, count aggregation"),
    ("pfsr", "pfsr, two phases"),
    ("central", "central, forward only"),
    ("central", "central, sasrec"),
    ("central", "central, gru4rec"),
    ("fed-avg, shared table", "central"),
    ("fed-avg, shared table, 72 rounds", "central"),
    ("two-sided", "local-only"),
    ("two-sided", "fed-avg"),
    ("two-sided", "two-sided, forward only"),
    ("two-sided", "two-sided, anchor global"),
    ("two-sided", "two-sided, rho .05"),
    ("two-sided", "two-sided, rho .5"),
    ("two-sided", "two-sided, common start"),
    ("two-sided, common start", "two-sided, secret start"),
    ("two-sided, common start", "local-only, common start"),
    ("two-sided, common start", "fed-avg, common start"),
    ("two-sided, 48 rounds", "local-only, 48 rounds"),
    ("pfsr, clients of 100", "local-only, clients of 100"),
    ("pfsr, clients of 100", "fed-avg, clients of 100"),
    ("pfsr, clients of 100", "vrm without dml, clients of 100"),
    ("pfsr, clients of 100", "two-sided, clients of 100"),
    ("fed-avg, clients of 100", "local-only, clients of 100"),
    ("pfsr, clients of 20", "local-only, clients of 20"),
    ("pfsr, clients of 20", "fed-avg, clients of 20"),
    ("two-sided, clients of 20", "local-only, clients of 20"),
    ("two-sided, clients of 20", "fed-avg, clients of 20"),
    ("fed-avg, clients of 20", "local-only, clients of 20"),
    ("two-sided, clients of 5", "fed-avg, clients of 5"),
)
SIZED = ("pfsr", "two-sided", "vrm without dml", "fed-avg", "local-only")
LENGTHS = ((0, 30), (30, 100), (100, 10**9))


def usual_seeds(records: Records) -> Records:
    """Every arm at the seeds that most arms have, so that the rows of a table can be compared."""
    counts = Counter(seed for by_seed in records.values() for seed in by_seed)
    usual = [seed for seed, count in counts.items() if 2 * count > len(records)]
    found = {
        arm: {seed: by_seed[seed] for seed in sorted(usual) if seed in by_seed}
        for arm, by_seed in records.items()
    }
    return {arm: by_seed for arm, by_seed in found.items() if by_seed}


def more_seeds(records: Records) -> Records:
    """The arms that have further seeds, at all of theirs."""
    usual = usual_seeds(records)
    return {arm: seeds for arm, seeds in records.items() if len(seeds) > len(usual.get(arm, {}))}


def main_table(records: Records) -> list[str]:
    """One row an arm: test means over seeds with their spread, and what it cost."""
    lines = [
        "| arm | seeds | HR@10 | NDCG@10 | NDCG@10 by seed | HR@10 / NDCG@10, seen-included "
        "| validation NDCG@10 | round | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, by_seed in sorted(records.items(), key=lambda item: -_mean(item[1], "ndcg@10")):
        each = [r["test_means"]["seen-filtered/ndcg@10"] for _, r in sorted(by_seed.items())]
        rounds = "/".join(str(r.get("round", "-")) for _, r in sorted(by_seed.items()))
        seconds = np.mean([r.get("cpu_seconds", 0.0) for r in by_seed.values()])
        seen_included = " / ".join(
            f"{_mean(by_seed, metric, 'seen-included'):.{digits}f}"
            for metric, digits in (("hr@10", 3), ("ndcg@10", 4))
        )
        lines.append(
            f"| {arm} | {len(by_seed)} | {_mean(by_seed, 'hr@10'):.3f} "
            f"| {_mean(by_seed, 'ndcg@10'):.4f} | {' '.join(f'{x:.4f}' for x in each)} "
            f"| {seen_included} "
            f"| {np.mean([r['valid'] for r in by_seed.values()]):.4f} | {rounds} | {seconds:.0f} |"
        )
    return lines


def length_table(records: Records, a: str, b: str) -> list[str]:
    """For whom ``a`` helps: the difference by length of the user's history."""
    seeds = common_seeds(records, a, b)
    if not seeds:
        return []
    lengths = records[a][seeds[0]]["lengths"]
    lines = [
        f"| history | users | {a} | {b} | difference | 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for low, high in LENGTHS:
        users = sorted(user for user, length in lengths.items() if low <= length < high)
        if not users:
            continue
        left, right = (
            user_matrix({seed: records[arm][seed] for seed in seeds}, users) for arm in (a, b)
        )
        interval = paired_bootstrap(left, right)
        name = f"{low} to {high - 1}" if high < 10**9 else f"{low} and more"
        lines.append(
            f"| {name} | {len(users)} | {left.mean():.4f} | {right.mean():.4f} "
            f"| {interval.difference:+.4f} | [{interval.low:+.4f}, {interval.high:+.4f}] |"
        )
    return lines


def size_table(records: Records) -> list[str]:
    """Test NDCG@10 by the number of users that a client has, "-" where an arm was not run."""
    lines = [f"| users per client | {' | '.join(SIZED)} |", "|---" * (1 + len(SIZED)) + "|"]
    for size, end in PRIVATE_SIZES.items():
        arms = [records.get(name + end) for name in SIZED]
        cells = [f"{_mean(arm, 'ndcg@10'):.4f}" if arm else "-" for arm in arms]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return lines


def report(records: Records) -> str:
    """All tables of the ablation; empty where no arm of them was run.

    Args:
        records: Of any arms; item modes, long histories and markets, which have reports of their
            own, are left out.
    """
    others = {
        arm: by_seed
        for arm, by_seed in records.items()
        if not is_market_arm(arm) and not is_item_arm(arm) and not is_history_arm(arm)
    }
    splits = {r["split"][:16] for seeds in others.values() for r in seeds.values() if "split" in r}
    usual, more = usual_seeds(others), more_seeds(others)
    parts = [
        f"Made by `make ablation`; the arms ran at commits {commits_of(others)}; split "
        f"{', '.join(sorted(splits))}. ML-100K, protocol `strict`, seen-filtered unless said; "
        "the round is chosen on validation.",
        "\n".join(main_table(usual)),
        "Paired bootstrap over the 943 users, per-user values averaged over the seeds first:",
        "\n".join(pair_table(usual, PAIRS)),
        "By the size of the clients, test NDCG@10:",
        "\n".join(size_table(usual)),
    ]
    if more:
        count = min(len(seeds) for seeds in more.values())
        parts += [
            f"The arms that were run at more seeds ({count} of them), the same way:",
            "\n".join(main_table(more)),
            "\n".join(pair_table(more, PAIRS)),
        ]
    for other in ("fed-avg", "local-only"):
        rows = length_table(others, "pfsr", other)
        if rows:
            text = f"For whom: PFSR against {other} by length of history, at the seeds of both."
            parts += [text, "\n".join(rows)]
    return "\n\n".join(parts) if others else ""


def _mean(by_seed: Mapping[int, Record], metric: str, protocol: str = "seen-filtered") -> float:
    return float(np.mean([r["test_means"][f"{protocol}/{metric}"] for r in by_seed.values()]))
