from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import command, report
from benchmarks.plots import series_of
from benchmarks.timing import Measurement


def line(benchmark: str = "encoder", case: str = "kernel, L = 50", **fields: object) -> dict:
    given = {"ours_ms": 2.0, "peer": "GRU", "peer_ms": 6.0, "ratio": 3.0, **fields}
    return Measurement(benchmark, case, **given).as_json()


def test_new_lines_replace_those_of_their_benchmark_only() -> None:
    old = [line("serve", "a"), line("scan", "old"), line("encoder", "kept")]
    found = report.merge(old, [line("scan", "new")])
    assert [one["case"] for one in found] == ["new", "kept", "a"]


def test_page_has_every_line_with_its_verdict(tmp_path: Path) -> None:
    lines = [
        line(size=50.0, target=1.0, holds=True),
        line(case="kernel, L = 200", size=200.0, target=4.0, holds=False, ours_ms=0.05),
        line("scan", "memory", ours_ms=None, peer_ms=None, ours_mb=10.0, peer_mb=30.0),
    ]
    page = report.write(lines, tmp_path).read_text()
    assert "| kernel, L = 50 | 2 ms | GRU | 6 ms | 3 | 1 | holds |" in page
    assert "| kernel, L = 200 | 50.0 us | GRU | 6 ms | 3 | 4 | **missed** |" in page
    assert "| memory | 10 MB | GRU | 30 MB | 3 |  |  |" in page
    assert "![" in page and (tmp_path / "performance/encoder.svg").read_text().startswith("<svg")
    assert not (tmp_path / "performance/scan.svg").exists()
    assert report.read_lines(tmp_path / "performance.jsonl") == lines


def test_same_lines_same_bytes(tmp_path: Path) -> None:
    lines = [line(size=50.0), line(size=200.0)]
    report.write(lines, tmp_path / "a")
    report.write(lines, tmp_path / "b")
    for name in ("performance.md", "performance/encoder.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_curves_by_variant_and_peer() -> None:
    lines = [line(size=50.0), line(size=200.0), line(case="plain, L = 50", size=50.0, peer_ms=8.0)]
    assert series_of(lines) == {
        "ours, kernel": [(50.0, 2.0), (200.0, 2.0)],
        "GRU": [(50.0, 7.0), (200.0, 6.0)],
        "ours, plain": [(50.0, 2.0)],
    }


def test_command_prints_lines_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measurement("scan", "c", 1.0, "p", 2.0, 2.0)
    monkeypatch.setattr(command, "_measure", lambda _name: iter([measured]))
    told: list[str] = []
    command.run(["scan"], tmp_path, told.append)
    assert json.loads(told[0])["ratio"] == 2.0 and "machine" in json.loads(told[0])
    assert told[1] == f"page: {tmp_path / 'performance.md'}"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(command.UnknownBenchmarkError, match="scam.*There are: scan, "):
        command.run(["scan", "scam"], None, print)
