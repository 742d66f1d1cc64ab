"""The picture of accuracy against leak: points are what the records say, and none is made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.arms.items import id_arm, item_arm
from experiments.leakage import attack as leak_records
from experiments.leakage.attack import measured, record_line
from experiments.leakage.plot import MODES, best_found, main, mean_and_error, points
from experiments.records import RecordStore
from experiments.run import ARMS
from tests.helpers.tiny import TINY

SEMANTIC = "semantic, 64 numbers of the id"


def line(mode: str, seed: int, norm: float, cosine: float) -> dict[str, Any]:
    attacks = {"norm": {"auc": 0.9, "found": norm}, "cosine": {"auc": 0.5, "found": cosine}}
    return {"mode": mode, "seed": seed, "clients": 30, "chance": 0.06, "attacks": attacks}


def record(arm: str, seed: int, ndcg: float) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "test_means": {"seen-filtered/ndcg@10": ndcg}}


LINES = [line(SEMANTIC, 0, 0.7, 0.1), line(SEMANTIC, 1, 0.8, 0.1), line("dual", 0, 0.9, 1.0)]
RECORDS = [
    record(id_arm(64), 0, 0.05),
    record(id_arm(64), 1, 0.07),
    record(item_arm("fed-avg", "private", 1), 0, 0.0),
    record(item_arm("fed-avg", "shared", 1), 0, 0.04),
]


def test_means_and_standard_errors() -> None:
    assert mean_and_error([0.25]) == (0.25, 0.0)
    assert mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))
    assert best_found(LINES[2]) == 1.0


def test_a_mode_is_drawn_where_both_kinds_of_records_are() -> None:
    records = {one["arm"]: {} for one in RECORDS}
    for one in RECORDS:
        records[one["arm"]][one["seed"]] = one
    found = {point.mode.label.partition(":")[0]: point for point in points(records, LINES)}
    assert list(found) == ["semantic, id-dim 64", "private"]
    semantic, private = found.values()
    assert (semantic.leak, semantic.accuracy) == pytest.approx((0.75, 0.06))
    assert (semantic.leak_error, semantic.accuracy_error) == pytest.approx((0.05, 0.01))
    assert (private.leak, private.accuracy) == pytest.approx((0.06, 0.0)), "a guess is all there is"


def test_every_mode_names_arms_and_records_that_can_be_made() -> None:
    assert {mode.arm for mode in MODES} <= set(ARMS)
    assert {mode.attacked for mode in MODES} - {""} == set(leak_records.MODES)


def test_the_command_draws_and_says_the_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for one in RECORDS:
        RecordStore(tmp_path).append(one)
    lines = tmp_path / "leak.jsonl"
    lines.write_text("".join(json.dumps(one) + "\n" for one in LINES))
    out = tmp_path / "plots" / "leak.svg"
    words = ["--leak", str(lines), "--records", str(tmp_path), "--out", str(out)]
    assert main(words) == 0
    assert "semantic, id-dim 64: found 0.750 ± 0.050, NDCG@10 0.0600" in capsys.readouterr().out
    first = out.read_bytes()
    assert b"<svg" in first
    assert main(words) == 0
    assert out.read_bytes() == first
    lines.write_text("")
    with pytest.raises(ValueError, match="no item mode has records of both"):
        main(words)


def test_a_record_of_the_leak_holds_what_its_line_says() -> None:
    recipe = {**TINY, "algorithm.name": "fed-avg"}
    one = measured("dual", recipe, 6)
    assert (one["mode"], one["seed"], one["clients"]) == ("dual", 0, 6)
    assert 0 < one["chance"] < best_found(one) <= 1
    assert record_line(one).startswith("seed 0, dual: norm AUC 0.")
    assert f"found {best_found(one):.3f}" in record_line(one)
    assert json.loads(json.dumps(one)) == one
