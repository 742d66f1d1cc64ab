"""The records of this repository: small, complete, and what the tables of the results say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.record_files import PENDING, RANKS, SUMMARIES, USERS
from experiments.records import RECORDS, RecordStore
from experiments.tables import main as main_tables
from experiments.tables import markets as market_tables
from experiments.tables.histories import histories_table
from experiments.tables.items import items_table
from pfsr_core.evaluation.ranking import per_user

ROOT = Path(__file__).parents[2]
RESULTS = (ROOT / "docs" / "results.md").read_text("utf-8")
COUNTS = {"main": 297, "ml-latest-small": 12, "xmarket": 10}


def opened(collection: str = "main") -> RecordStore:
    return RecordStore(ROOT / RECORDS, collection)


@pytest.fixture(scope="module")
def records() -> main_tables.Records:
    return main_tables.load_records(opened())


@pytest.mark.parametrize("collection", COUNTS)
def test_no_record_is_missing_and_metrics_are_those_of_the_ranks(collection: str) -> None:
    found = list(opened(collection))
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


def test_means_in_the_results_are_those_of_the_records(records: main_tables.Records) -> None:
    """What is computed at once; intervals are below."""
    arms = {arm: seeds for arm, seeds in records.items() if not arm.startswith("markets, ")}
    rows = [*items_table(arms), *histories_table(arms)]
    assert len(rows) > 50
    generated = generated_part().splitlines()
    assert [row for row in rows if row not in generated] == []


@pytest.mark.parametrize("collection", ["main", "xmarket"])
def test_market_means_in_the_results_are_those_of_the_records(collection: str) -> None:
    """The results leave some rows out; a row that they have is the one of the records."""
    found = market_tables.load_market_records(opened(collection))
    rows = [*market_tables.market_table(found), *market_tables.shipping_table(found)]
    rows += market_tables.cosine_table(found)
    synthetic, xmarket = RESULTS.split("**Synthetic markets**")[1].split("**XMarket, cleaned**")
    text = {"main": synthetic, "xmarket": xmarket}[collection]
    told = {row for row in text.splitlines() if row.startswith(("| fecosr", "| one to", "| base"))}
    assert len(told) >= 7 and told <= set(rows)


@pytest.mark.slow
def test_the_generated_part_of_the_results_is_what_the_records_give(
    records: main_tables.Records,
) -> None:
    assert main_tables.report(records) == generated_part()


@pytest.mark.slow
@pytest.mark.parametrize("collection", ["main", "xmarket"])
def test_market_intervals_in_the_results_are_those_of_the_records(collection: str) -> None:
    found = market_tables.load_market_records(opened(collection))
    head, line, *rows = market_tables.claim_table(found)
    assert f"{head}\n{line}\n" in RESULTS
    assert rows and [row for row in rows if row not in RESULTS] == []


def generated_part() -> str:
    inside = RESULTS.split(main_tables.BEGIN)[1].split(main_tables.END)[0]
    return inside.strip("\n")
