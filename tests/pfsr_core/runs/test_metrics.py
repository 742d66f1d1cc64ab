"""One line registers a metric: it is then in everything that a run says about itself."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pfsr_core.evaluation.metrics import registry
from pfsr_core.evaluation.metrics.hit_rate import hit_rate
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import clients_text, final_table
from pfsr_core.runs.reading import read_run
from tests.helpers.runs import write_run

CANDIDATES = ("seen-filtered", "seen-included")
SMALL = {"federation__clients": 3, "federation__rounds": 1, "run__compare": ""}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with HR@40 among the metrics."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "METRICS", (*registry.METRICS, hit_rate(40, headline=True)))
        told = write_run(directory, **SMALL)
        assert "HR@40" in told[0]
        (directory / "table.txt").write_text(final_table(directory, 200), "utf-8")
        write_report(directory)
        (client, *_) = read_run(directory).clients
        assert client.mean("hr@40") >= client.mean("hr@10")
    return directory


def test_it_is_in_the_line_of_a_round_and_in_the_summary(run: Path) -> None:
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines())
    methods = json.loads((run / "summary.json").read_text("utf-8"))["methods"]
    names = [f"test/{candidates}/hr@40" for candidates in CANDIDATES]
    for figures in (line, *(entry["best"] for entry in methods)):
        assert all(figures[name] >= figures[name.replace("40", "20")] for name in names)
        assert figures["valid/clients/hr@40"] >= figures["valid/clients/hr@10"]


def test_it_is_a_column_of_the_clients(run: Path) -> None:
    with (run / "clients.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["hr@40_sum"]) >= float(row["hr@10_sum"]) for row in rows)


def test_it_is_a_column_of_the_table_and_of_the_page(run: Path) -> None:
    table = (run / "table.txt").read_text("utf-8")
    heading = next(line for line in table.splitlines() if "HR@40" in line)
    assert heading.split().count("HR@40") == 2
    page = (run / "report.html").read_text("utf-8")
    assert page.count("<th>HR@40</th>") == 3  # both sets of candidates, and client by client


def test_the_default_columns(tmp_path: Path) -> None:
    write_run(tmp_path / "run", **SMALL)
    with (tmp_path / "run" / "clients.csv").open(encoding="utf-8") as file:
        columns = next(csv.reader(file))
    metrics = registry.headline_metrics()
    totals = [f"{metric.name}_sum" for metric in metrics]
    before, after = ["method", "client", "users", "interactions", "split"], ["covered", "shipped"]
    assert columns == [*before, *totals, *after]
    table = final_table(tmp_path / "run", 200)
    assert [word for word in table.splitlines()[1].split() if "@" in word] == [
        *[metric.title for metric in metrics] * 2
    ]
    assert max(map(len, final_table(tmp_path / "run").splitlines())) <= 120


def test_clients_as_a_table_for_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METRICS", (hit_rate(40, headline=True),))
    row = {"client": "a", "method": "markov", "split": "test", "users": 4, "hr@40_sum": 3.0}
    assert clients_text("all", [row]).splitlines()[0] == "all: HR@40, seen items filtered"
    assert clients_text("all", [row]).split()[-1] == ".750"


def test_a_run_of_before_a_metric_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_run(run, **SMALL)
    before = read_run(run).clients
    monkeypatch.setattr(registry, "METRICS", (*registry.METRICS, hit_rate(40, headline=True)))
    assert read_run(run).clients == before
    table = final_table(run)
    (client,) = [line.split() for line in table.splitlines() if before[0].client in line]
    assert client.count("–") == 1
    write_report(run)
