"""A run without a network and a Flower run write the same records, key for key."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pfsr_core.assembly.data import load_federation
from pfsr_core.evaluation.metrics import registry
from pfsr_core.evaluation.metrics.hit_rate import hit_rate
from pfsr_core.runs.local import simulate
from tests.integration.helpers import settings_in
from tests.integration.loopback import run_loopback


@pytest.mark.parametrize("finetune", [False, True])
def test_both_runners_write_the_same_keys(
    tmp_path: Path, finetune: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one metric more than usual, which is one line of the registry."""
    more = (*registry.METRICS, hit_rate(50, headline=True))
    monkeypatch.setattr(registry, "METRICS", more)
    settings = settings_in(
        tmp_path, model__items="dual", algorithm__finetune=finetune, run__baselines=True
    )
    plain = tmp_path / "plain"
    simulate(settings, load_federation(settings), plain, lambda _line: None)
    flower = run_loopback(settings, tmp_path, nodes=2)[0].directory

    def both(name: str) -> list[Any]:
        return [json.loads((run / name).read_text("utf-8")) for run in (plain, flower)]

    rounds = [_trained_rounds(run / "metrics.jsonl") for run in (plain, flower)]
    assert len(rounds[0]) == len(rounds[1])
    for ours, theirs in zip(*rounds, strict=True):
        assert _keys(ours) == _keys(theirs)
    ours, theirs = both("summary.json")
    assert _keys(ours) == _keys(theirs)
    for entry, other in zip(ours["methods"], theirs["methods"], strict=True):
        assert _keys(entry) == _keys(other), entry["method"]
    assert _keys(both("baselines.json")[0]) == _keys(both("baselines.json")[1])
    assert "test/seen-included/hr@50" in theirs["methods"][0]["last"]
    assert "valid/clients/hr@50" in rounds[1][0]
    rows = [_rows(run / "clients.csv") for run in (plain, flower)]
    assert "hr@50_sum" in rows[1][0]
    assert list(rows[0][0]) == list(rows[1][0])
    assert {(r["method"], r["client"], r["split"]) for r in rows[0]} == {
        (r["method"], r["client"], r["split"]) for r in rows[1]
    }


def _trained_rounds(path: Path) -> list[dict[str, Any]]:
    """The lines but that of round 0, the model before training, which a Flower run has besides."""
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return [line for line in lines if line["round"]]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _keys(record: dict[str, Any]) -> set[str]:
    """Keys at every depth; who was dropped and which tensors there are is content."""
    keys = set(record)
    for name, value in record.items():
        if isinstance(value, dict):
            keys |= {f"{name} {key}" for key in _keys(value)}
    return keys
