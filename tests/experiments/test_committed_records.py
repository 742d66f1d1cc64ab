"""The records of this repository: small, complete, and what the tables of the results say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.record_files import PENDING, RANKS, SUMMARIES, USERS, Record
from experiments.records import RECORDS, RecordStore
from experiments.tables.__main__ import PAGES
from experiments.tables.pages import PARTS, Part, read_part
from pfsr_core.evaluation import bootstrap
from pfsr_core.evaluation.bootstrap import Interval
from pfsr_core.evaluation.ranking import per_user

ROOT = Path(__file__).parents[2]
COUNTS = {"main": 297, "ml-latest-small": 12, "xmarket": 10}
INTERVAL = re.compile(
    r"\*? (\| )?\[[+-]\.?\d[^\]]*\]( \(may lose\)| \| (above|below|no difference shown))?"
)


@cache
def records_of(collection: str) -> list[Record]:
    return list(RecordStore(ROOT / RECORDS, collection))


@pytest.mark.parametrize("collection", COUNTS)
def test_no_record_is_missing_and_metrics_are_those_of_the_ranks(collection: str) -> None:
    found = records_of(collection)
    assert len(found) >= COUNTS[collection]
    for record in found:
        assert not record.keys() & {"kept", "views"}
        for part in parts_with_ranks(record):
            ranks = np.array(list(part["ranks"].values()))
            assert part["test"] == pytest.approx(per_user(ranks, "ndcg@10").mean(), abs=1e-12)
            assert part.get("lengths", part["ranks"]).keys() == part["ranks"].keys()
            for metric in ("hr@5", "hr@20", "ndcg@20", "mrr"):
                if means := part.get("test_means"):
                    mean = per_user(ranks, metric).mean()
                    assert means[f"seen-filtered/{metric}"] == pytest.approx(mean, abs=1e-12)


def parts_with_ranks(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "ranks" in node:
        yield node
    for value in node.values():
        if isinstance(value, Mapping):
            yield from parts_with_ranks(value)


def test_they_take_less_than_four_megabytes() -> None:
    files = [path for path in (ROOT / RECORDS).rglob("*") if path.is_file()]
    committed = [path for path in files if path.parent.name != PENDING]
    assert {SUMMARIES, RANKS, USERS} <= {path.name for path in committed}
    assert sum(path.stat().st_size for path in committed) < 4_000_000


def test_every_marker_in_the_results_is_one_of_a_generated_part() -> None:
    found = {
        (page.name, line)
        for page in (ROOT / PAGES).glob("*.md")
        for line in page.read_text("utf-8").splitlines()
        if line.endswith(("begin -->", "end -->"))
    }
    assert found == {(part.page, marker) for part in PARTS for marker in (part.begin, part.end)}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_tables_are_those_of_the_records_but_for_intervals(
    part: Part, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "clustered_bootstrap", without_resampling)
    expected = part.report(records_of(part.collection))
    found = read_part(ROOT / PAGES, part)
    assert len(INTERVAL.findall(found)) > 5
    assert INTERVAL.sub("", found) == INTERVAL.sub("", expected), "run python -m experiments.tables"


def without_resampling(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    counts: NDArray[np.float64],
    **_: float,
) -> Interval:
    difference = float((a - b).sum() / counts.sum())
    return Interval(difference, difference, difference, p_value=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_tables_are_those_of_the_records_with_their_intervals(part: Part) -> None:
    expected = part.report(records_of(part.collection))
    assert read_part(ROOT / PAGES, part) == expected, "run python -m experiments.tables"
