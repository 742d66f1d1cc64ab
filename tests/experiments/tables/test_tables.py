"""Tables of made records: rows, seeds and pairs are those that the records allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.arms.histories import PLACES
from experiments.records import RecordStore
from experiments.tables.ablation import length_table, more_seeds, report, size_table, usual_seeds
from experiments.tables.comparison import compare, load_records
from experiments.tables.histories import histories_pairs, histories_table, is_history_arm
from experiments.tables.items import is_item_arm, items_table
from pfsr_core.evaluation.ranking import per_user


def record(arm: str, seed: int, ranks: list[int]) -> dict[str, object]:
    values = per_user(np.array(ranks), "ndcg@10")
    means = {"seen-filtered/hr@10": 0.5, "seen-filtered/ndcg@10": float(values.mean())}
    return {
        "arm": arm,
        "seed": seed,
        "commit": "abc",
        "split": "0" * 64,
        "valid": 0.1,
        "test_means": {**means, "seen-included/hr@10": 0.1, "seen-included/ndcg@10": 0.05},
        "ranks": {f"u{i}": rank for i, rank in enumerate(ranks)},
        "lengths": {f"u{i}": 10 + 50 * (i % 3) for i in range(len(ranks))},
    }


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    store = RecordStore(tmp_path)
    for seed in (0, 1):
        for arm, rank in (("pfsr", 1), ("fed-avg", 3), ("local-only", 50)):
            store.append(record(arm, seed, [rank] * 30))
    return store


def test_a_clear_difference_is_called_above_and_an_arm_that_is_missing_is_left_out(
    store: RecordStore,
) -> None:
    records = load_records(store)
    interval = compare(records, "pfsr", "fed-avg")
    assert interval is not None and interval.difference == pytest.approx(0.5)
    assert compare(records, "pfsr", "central") is None
    text = report(records)
    assert "| pfsr - fed-avg | +0.5000 | [+0.5000, +0.5000] | above |" in text
    assert "central" not in text


def test_rows_are_compared_at_the_same_seeds_and_further_seeds_have_tables_of_their_own() -> None:
    made = {seed: record("x", seed, [seed + 1, 3]) for seed in range(5)}
    records = {"pfsr": made, "fed-avg": made, "central": {seed: made[seed] for seed in (0, 1)}}
    records |= {"fed-prox": records["central"], "vrm without dml": records["central"]}
    assert all(sorted(seeds) == [0, 1] for seeds in usual_seeds(records).values())
    assert sorted(more_seeds(records)) == ["fed-avg", "pfsr"]
    assert sorted(more_seeds(records)["pfsr"]) == [0, 1, 2, 3, 4]
    assert more_seeds(usual_seeds(records)) == {}


def test_sizes_of_clients_are_rows_and_what_was_not_run_is_a_dash() -> None:
    arm = {0: record("x", 0, [1, 1])}
    rows = size_table({"pfsr": arm, "fed-avg, clients of 100": arm})
    assert rows[2].split(" | ") == ["| 100", "-", "-", "-", "1.0000", "- |"]
    assert rows[3].split(" | ") == ["| 47", "1.0000", "-", "-", "-", "- |"]
    assert len(rows) == 2 + 5


def test_history_lengths_cover_every_user_once(store: RecordStore) -> None:
    rows = length_table(load_records(store), "pfsr", "fed-avg")[2:]
    assert sum(int(row.split("|")[2]) for row in rows) == 30


def item_record(test: float, own: bool = True) -> dict[str, object]:
    """A record of an item arm with all that the table reads."""
    targets = {"cold": {"seen-filtered/ndcg@10": test / 2}}
    if own:
        targets["covered"] = {"seen-filtered/ndcg@10": test}
    return {
        "test": test,
        "test_means": {"seen-filtered/hr@10": 2 * test, "seen-filtered/ndcg@10": test},
        "variants": {"global": {"test": test / 4}},
        "test_by_target": targets,
        "bytes_up_per_client": 4000,
    }


def test_item_arms_have_a_table_of_their_own() -> None:
    arm = "fed-avg, semantic items, clients of 5"
    rows = items_table({arm: {0: item_record(0.1), 1: item_record(0.3)}, "fed-avg": {}})
    assert rows[2:] == [
        "| fed-avg | semantic | 5 | 2 | 0.4000 | 0.2000 | 0.0500 | - | - | 0.2000 | 0.1000 | 4 |"
    ]
    alone = items_table({"pfsr, dual items, clients of 1": {0: item_record(0.2, own=False)}})
    assert "| - | 0.1000 | 4 |" in alone[2]
    assert items_table({"fed-avg": {}}) == []
    private = items_table(
        {"pfsr": {0: {"test_means": {"seen-filtered/hr@10": 1.0, "seen-filtered/ndcg@10": 0.5}}}}
    )
    assert private[2] == "| pfsr | private | 47 | 1 | 1.0000 | 0.5000 | - | - | - | - | - | - |"
    assert is_item_arm(arm) and not is_item_arm("fed-avg, clients of 100")


def history_record(ranks: dict[str, int]) -> dict[str, object]:
    """The records of two users with long histories and one with a short one."""
    least = PLACES["histories, central"].long_from
    return {
        "ranks": ranks,
        "lengths": {"a": least, "b": least + 9, "c": least - 1},
        "cpu_seconds": 60.0,
    }


def test_long_histories_have_a_table_of_their_own() -> None:
    tokens, recent = (f"histories, central, sasrec {kind}" for kind in ("with tokens", "reads 50"))
    records = {
        tokens: {0: history_record({"a": 1, "b": 1, "c": 99})},
        recent: {
            0: history_record({"a": 1, "b": 99, "c": 1}),
            1: history_record({"a": 1, "b": 99, "c": 99}),
        },
        "histories, central, oldest decide, gru4rec's state": {
            0: history_record({"a": 1, "b": 1, "c": 99})
        },
        "histories, central, wordllama, sasrec with tokens": {
            0: history_record({"a": 1, "b": 1, "c": 1})
        },
        "pfsr": {},
    }
    assert histories_table(records)[2:] == [
        "| central | sasrec reads 50 | 2 | 0.5000 | 0.5000 (2) | 0.500 | 60 |",
        "| central | sasrec with tokens | 1 | 0.6667 | 1.0000 (2) | 1.000 | 60 |",
        "| central, wordllama | sasrec with tokens | 1 | 1.0000 | 1.0000 (2) | 1.000 | 60 |",
        "| central, oldest decide | gru4rec's state | 1 | 0.6667 | 0.6667 (3) | 0.667 | 60 |",
    ]
    kinds, places = histories_pairs(records)[2:]
    assert kinds.startswith("| central: sasrec with tokens minus sasrec reads 50 | +0.5000 [")
    text = "| sasrec with tokens, all users: central, wordllama minus central | +0.3333 ["
    assert places.startswith(text)
    assert histories_table({"pfsr": {}}) == []
    assert is_history_arm(tokens) and not is_history_arm("central, sasrec")
