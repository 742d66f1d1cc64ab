"""The ablation's records as tables for people: means over seeds, paired bootstrap intervals.

Reads what :mod:`experiments.run` recorded and rewrites the part of ``docs/results.md`` between the
two markers; everything else in that file, among it the log of negative results, stays.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.arms.items import PRIVATE_SIZES
from experiments.arms.markets import is_market_arm
from experiments.records import MAIN, RECORDS, RecordStore
from experiments.tables.histories import histories_pairs, histories_table, is_history_arm
from experiments.tables.items import PAIRS as ITEM_PAIRS
from experiments.tables.items import is_item_arm, items_table
from pfsr_core.evaluation.bootstrap import Interval, paired_bootstrap
from pfsr_core.evaluation.ranking import per_user

BEGIN, END = "<!-- ablation: begin -->", "<!-- ablation: end -->"
Records = dict[str, dict[int, dict[str, Any]]]
"""arm -> seed -> record"""

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


def load_records(store: RecordStore) -> Records:
    """Every finished arm; the baselines become arms of their own."""
    records: Records = defaultdict(dict)
    for record in store:
        if record["arm"] != "baselines":
            records[record["arm"]][record["seed"]] = record
            continue
        for place in ("client", "central"):
            for name, result in record[place].items():
                records[f"{place} {name}"][record["seed"]] = {**record, **result}
    return dict(records)


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


def user_matrix(
    by_seed: Mapping[int, Mapping[str, Any]], users: Sequence[str], metric: str
) -> NDArray[np.float64]:
    """Per-user test values, one row a seed: (S, U), columns in the order of ``users``."""
    rows = [[record["ranks"][user] for user in users] for _, record in sorted(by_seed.items())]
    return np.stack([per_user(np.array(row), metric) for row in rows])


def compare(records: Records, a: str, b: str, metric: str = "ndcg@10") -> Interval | None:
    """Paired bootstrap of ``a - b`` over users, seeds averaged; None unless both arms are there."""
    seeds = sorted(set(records.get(a, {})) & set(records.get(b, {})))
    if not seeds:
        return None
    users = sorted(records[a][seeds[0]]["ranks"])
    left, right = (
        user_matrix({seed: records[arm][seed] for seed in seeds}, users, metric) for arm in (a, b)
    )
    return paired_bootstrap(left, right)


def main_table(records: Records) -> list[str]:
    """One row an arm: test means over seeds with their spread, and what it cost."""
    lines = [
        "| arm | seeds | HR@10 | NDCG@10 | NDCG@10 by seed | HR@10 / NDCG@10, history kept "
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


def pair_table(records: Records, pairs: Sequence[tuple[str, str]] = PAIRS) -> list[str]:
    lines = ["| difference in test NDCG@10 | mean | 95 % interval | |", "|---|---|---|---|"]
    for a, b in pairs:
        interval = compare(records, a, b)
        if interval is not None:
            lines.append(
                f"| {a} - {b} | {interval.difference:+.4f} "
                f"| [{interval.low:+.4f}, {interval.high:+.4f}] | {_verdict(interval)} |"
            )
    return lines


def length_table(records: Records, a: str, b: str) -> list[str]:
    """For whom ``a`` helps: the difference by length of the user's history."""
    seeds = sorted(set(records.get(a, {})) & set(records.get(b, {})))
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
            user_matrix({seed: records[arm][seed] for seed in seeds}, users, "ndcg@10")
            for arm in (a, b)
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
    lines = [f"| users a client | {' | '.join(SIZED)} |", "|---" * (1 + len(SIZED)) + "|"]
    for size, end in PRIVATE_SIZES.items():
        arms = [records.get(name + end) for name in SIZED]
        cells = [f"{_mean(arm, 'ndcg@10'):.4f}" if arm else "-" for arm in arms]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return lines


def report(records: Records) -> str:
    """The generated part of the results file. Markets have tables of their own."""
    records = {arm: by_seed for arm, by_seed in records.items() if not is_market_arm(arm)}
    commits = {r["commit"] for by_seed in records.values() for r in by_seed.values()}
    others = {
        arm: by_seed
        for arm, by_seed in records.items()
        if not is_item_arm(arm) and not is_history_arm(arm)
    }
    splits = {
        r["split"][:16] for by_seed in others.values() for r in by_seed.values() if "split" in r
    }
    usual, more = usual_seeds(others), more_seeds(others)
    parts = [
        f"Made by `make ablation`; the arms ran at commits "
        f"{', '.join(sorted(commits))}; split {', '.join(sorted(splits))}. ML-100K, protocol "
        "`strict`, history excluded unless said; the round is chosen on validation.",
        "\n".join(main_table(usual)),
        "Paired bootstrap over the 943 users, per-user values averaged over the seeds first:",
        "\n".join(pair_table(usual)),
        "By the size of the clients, test NDCG@10:",
        "\n".join(size_table(usual)),
    ]
    rows = items_table(records)
    if rows:
        parts += [
            "Item modes. *global*, *global+private*, *full*: what the federation learnt, with the "
            "client's residual, and trained once more on the client. *Own targets*: items that "
            "the client has trained; *others'*: those that it never met. *kB up*: of a client and "
            "round.",
            "\n".join(rows),
            "\n".join(pair_table(records, ITEM_PAIRS)),
        ]
    rows = histories_table(records)
    if rows:
        parts += [
            "Long histories. *Reads*: how many items, or what stands for the older ones. Users "
            "with few items are read whole in every row; long are 200 items or more, and all "
            "histories where the oldest items decide.",
            "\n".join(rows),
            "\n".join(histories_pairs(records)),
        ]
    if more:
        count = min(len(seeds) for seeds in more.values())
        parts += [
            f"The arms that were run at more seeds ({count} of them), the same way:",
            "\n".join(main_table(more)),
            "\n".join(pair_table(more)),
        ]
    for other in ("fed-avg", "local-only"):
        rows = length_table(records, "pfsr", other)
        if rows:
            text = f"For whom: PFSR against {other} by length of history, at the seeds of both."
            parts += [text, "\n".join(rows)]
    return "\n\n".join(parts)


def write_between_markers(path: Path, text: str) -> None:
    """Replaces the generated part of ``path``; raises ValueError when its markers are missing."""
    whole = path.read_text("utf-8")
    if BEGIN not in whole or END not in whole:
        raise ValueError(f"{path}: no lines '{BEGIN}' and '{END}'. Fix: put them where it belongs.")
    head, rest = whole.split(BEGIN, 1)
    path.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", "utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tables out of the ablation's records.")
    parser.add_argument("--records", type=Path, default=RECORDS, help="directory of the records")
    parser.add_argument("--collection", default=MAIN, help="of the records")
    parser.add_argument("--out", type=Path, help="results file to update; default: print")
    options = parser.parse_args(argv)
    text = report(load_records(RecordStore(options.records, options.collection)))
    if options.out is None:
        sys.stdout.write(text + "\n")
    else:
        write_between_markers(options.out, text)
    return 0


def _mean(
    by_seed: Mapping[int, Mapping[str, Any]], metric: str, protocol: str = "seen-filtered"
) -> float:
    return float(np.mean([r["test_means"][f"{protocol}/{metric}"] for r in by_seed.values()]))


def _verdict(interval: Interval) -> str:
    if interval.low > 0:
        return "above"
    return "below" if interval.high < 0 else "no difference shown"


if __name__ == "__main__":
    sys.exit(main())
