"""The report: its figures are those of the files, nothing comes from outside, partial runs work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.metrics.registry import headline_metrics
from pfsr_core.files import append_line
from pfsr_core.reports.columns import duration, share, size
from pfsr_core.reports.page import headline, write_report
from pfsr_core.reports.plots import DASHES
from pfsr_core.reports.queries import mask_ratios, pairs, wins
from pfsr_core.reports.text_table import final_table
from pfsr_core.runs.files import RunError, best_line, method_of, methods
from pfsr_core.runs.reading import read_run
from pfsr_core.runs.results import write_clients
from tests.helpers.runs import write_run

FIGURES = {
    f"{split}/{candidates}/{metric}": value
    for split, shift in (("valid", 0.01), ("test", 0.0))
    for candidates, value in (("seen-filtered", 0.2 + shift), ("seen-included", 0.1 + shift))
    for metric in ("hr@10", "ndcg@10")
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    write_run(directory)
    write_report(directory)
    return directory


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def round_line(round_: int, ndcg: float, algorithm: str = "pfsr", **more: Any) -> dict[str, Any]:
    figures = {**FIGURES, "valid/seen-filtered/ndcg@10": ndcg}
    return {"round": round_, "algorithm": algorithm, "seconds": 1.5, **figures, **more}


class Checker(HTMLParser):
    """Collects what a page would load, its visible text, and whether tags are balanced."""

    VOID = ("meta", "link", "br", "img", "input", "hr", "path", "use", "rect", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith(
                ("#", "data:image/png;base64,")
            ):
                self.outside.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += f" {data}"


def parse(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text("utf-8"))
    assert not checker.open
    return checker


TABLES = ("Final table", "Client by client")


def plots_of(path: Path) -> list[str]:
    text = path.read_text("utf-8")
    return [title for title in re.findall(r"<h2>(.*?)</h2>", text) if title not in TABLES]


ALL_PLOTS = [
    "Convergence",
    "Clients",
    "Bytes against accuracy",
    "Training loss",
    "What stays on the clients",
]


def test_the_page_loads_nothing_and_is_well_formed(finished: Path) -> None:
    page = parse(finished / "report.html")
    assert page.outside == []
    assert "<script" not in (finished / "report.html").read_text("utf-8")
    assert "url(http" not in (finished / "report.html").read_text("utf-8")


def test_the_page_shows_every_plot_and_every_method(finished: Path) -> None:
    assert plots_of(finished / "report.html") == ALL_PLOTS
    text = parse(finished / "report.html").text
    assert (finished / "report.html").read_text("utf-8").count("<svg") == len(ALL_PLOTS)
    for row in methods(read_run(finished)):
        assert row.name in text
        assert share(row.metrics["test/seen-filtered/hr@10"]) in text
        assert share(row.metrics["test/seen-included/ndcg@10"]) in text


def test_the_best_of_each_column_is_marked(finished: Path) -> None:
    rows = methods(read_run(finished))
    marked = re.findall(r'<td class="best">(.*?)</td>', (finished / "report.html").read_text())
    for name in (
        "test/seen-filtered/hr@10",
        "test/seen-filtered/ndcg@10",
        "test/seen-included/hr@10",
    ):
        assert share(max(row.metrics[name] for row in rows)) in marked


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    before = (run / "report.html").read_bytes()
    assert write_report(run).read_bytes() == before


def test_nothing_is_left_behind(run: Path) -> None:
    write_report(run)
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_text_is_escaped(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "run.name": "<script>x</script>"}))
    page = write_report(run).read_text("utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page


def test_headline_names_the_figure_and_the_rival(finished: Path) -> None:
    record = read_run(finished)
    rows = {row.name: row for row in methods(record)}
    text = headline(record, list(rows.values()))
    assert f"{rows['pfsr'].metrics['test/seen-filtered/hr@10']:.1%} of the users" in text
    assert f"local-only for {rows['local-only'].metrics['test/seen-filtered/hr@10']:.1%}" in text


def test_a_run_that_is_going_on(run: Path) -> None:
    for name in ("summary.json", "clients.csv", "baselines.json"):
        (run / name).unlink()
    page = parse(write_report(run)).text
    assert "not finished: 3 rounds so far" in page
    assert plots_of(run / "report.html") == [name for name in ALL_PLOTS if name != "Clients"]
    assert "not finished" in final_table(run)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["ranked among the whole catalogue", "Cross-entropy of the next item"]),
        ({"federation.catalogues": "own"}, ["ranked among the client's own catalogue"]),
        ({"algorithm.name": "pfedrec"}, ["Binary cross-entropy of items and sampled negatives"]),
    ],
)
def test_the_page_says_what_its_figures_are_of(
    run: Path, changes: dict[str, str], words: list[str]
) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, **changes}))
    page = parse(write_report(run)).text
    assert [text for text in words if text not in page] == []


def test_every_baseline_has_dashes_of_its_own() -> None:
    assert len(set(DASHES)) == len(DASHES) >= len(BASELINES)


def test_baselines_stand_in_the_table_before_the_run_ends(run: Path) -> None:
    (run / "summary.json").unlink()
    kinds = {row.name: row.kind for row in methods(read_run(run))}
    assert kinds["markov"] == "baseline"
    assert kinds["pfsr"] == "federated"


def test_rows_before_and_after_the_summary_agree(run: Path) -> None:
    after = {row.name: row for row in methods(read_run(run))}
    (run / "summary.json").unlink()
    before = {row.name: row for row in methods(read_run(run))}
    for name in ("pfsr", "fed-avg", "local-only"):
        assert before[name].version == after[name].version
        assert before[name].bytes_up == after[name].bytes_up
        for key in FIGURES:
            assert before[name].metrics[key] == after[name].metrics[key]


def test_one_round_and_nothing_else(tmp_path: Path) -> None:
    append_line(tmp_path / "metrics.jsonl", round_line(1, 0.1))
    page = parse(write_report(tmp_path)).text
    assert "pfsr puts the next item into the top 10 for 20.0% of the users" in page
    assert plots_of(tmp_path / "report.html") == ["Convergence"]


def test_no_round_yet(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"algorithm.name": "fed-avg"}')
    assert "fed-avg: no test results yet" in parse(write_report(tmp_path)).text
    assert final_table(tmp_path) == f"{tmp_path.name}: no method has results yet."


def test_a_round_without_evaluation(tmp_path: Path) -> None:
    append_line(tmp_path / "metrics.jsonl", {"round": 1, "algorithm": "pfsr", "train-loss": 3.0})
    write_report(tmp_path)
    assert plots_of(tmp_path / "report.html") == ["Training loss"]
    assert "–" in final_table(tmp_path)


def test_only_baselines(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "summary.json").unlink()
    (run / "clients.csv").unlink()
    write_report(run)
    assert "popularity (baseline)" in final_table(run)


def test_many_clients_become_a_curve(run: Path) -> None:
    head, *rows = (run / "clients.csv").read_text().splitlines()
    more = [row.replace("group-", f"copy{i}-") for i in range(10) for row in rows]
    (run / "clients.csv").write_text("\n".join([head, *more]) + "\n")
    assert len(pairs(read_run(run))) == 60
    write_report(run)
    assert plots_of(run / "report.html") == ALL_PLOTS


def test_a_line_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "algor')
    assert len(read_run(run).rounds) == 9


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("metrics.jsonl", "{broken\n", "metrics.jsonl, line 1: not a round"),
        ("metrics.jsonl", '{"round": 1}\n', "metrics.jsonl, line 1: not a round"),
        ("summary.json", "{", "summary.json is broken"),
        ("config.json", "[1]", "config.json does not hold an object"),
        ("clients.csv", "method,client\na,b\n", "clients.csv: cannot read 'users'"),
    ],
)
def test_a_broken_file_is_named(run: Path, name: str, content: str, problem: str) -> None:
    (run / name).write_text(content)
    with pytest.raises(RunError, match=f"{problem}.*Fix: "):
        write_report(run)


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run directory.*Fix: "):
        final_table(tmp_path)


def test_a_round_written_twice_counts_once_and_the_last_wins(tmp_path: Path) -> None:
    for line in (round_line(1, 0.1), round_line(2, 0.2), round_line(2, 0.3)):
        append_line(tmp_path / "metrics.jsonl", line)
    assert [line["valid/seen-filtered/ndcg@10"] for line in read_run(tmp_path).rounds] == [0.1, 0.3]


def test_validation_selects_the_earliest_best_round_and_never_round_0() -> None:
    lines = [round_line(0, 0.9), round_line(1, 0.1), round_line(2, 0.3), round_line(3, 0.3)]
    assert best_line(lines) == lines[2]
    assert best_line([]) is None
    assert best_line([{"round": 1}]) is None


@pytest.mark.parametrize(("finetuned", "version"), [(0.3, "round 4"), (0.5, "finetuned")])
def test_validation_selects_between_best_and_finetuned(finetuned: float, version: str) -> None:
    entry = {
        "method": "pfsr",
        "best_round": 4,
        "best": {"valid/seen-filtered/ndcg@10": 0.4, "test/seen-filtered/ndcg@10": 0.1},
        "finetuned": {"valid/seen-filtered/ndcg@10": finetuned, "test/seen-filtered/ndcg@10": 0.9},
    }
    assert method_of(entry).version == version


@pytest.mark.parametrize(("finetuned", "rows"), [(None, 1), (0.3, 1), (0.5, 0)])
def test_full_is_a_row_unless_the_method_already_is_that(
    tmp_path: Path, finetuned: float | None, rows: int
) -> None:
    after = {
        "valid/seen-filtered/ndcg@10": finetuned or 0.2,
        "test/global/seen-filtered/ndcg@10": 0.9,
    }
    entry = {
        "method": "fed-avg",
        "best_round": 4,
        "best": {"valid/seen-filtered/ndcg@10": 0.4},
        "finetuned": after if finetuned else None,
        "variants": {"full": after},
    }
    (tmp_path / "summary.json").write_text(json.dumps({"methods": [entry]}))
    found = [row for row in methods(read_run(tmp_path)) if row.name == "fed-avg: full"]
    assert len(found) == rows
    assert all(row.version == "at the end" for row in found)
    assert all(list(row.metrics) == ["valid/seen-filtered/ndcg@10"] for row in found)


def test_wins_count_clients_that_have_both(finished: Path) -> None:
    record = read_run(finished)
    better, compared = wins(record)
    assert compared == 6
    assert better == sum(a.mean("ndcg@10") > b.mean("ndcg@10") for a, b in pairs(record) if b)


def test_mask_ratios_nested_or_flat() -> None:
    nested = {"mask-ratio": {"norm.weight": 0.25}}
    assert (
        mask_ratios(nested)
        == mask_ratios({"mask-ratio/norm.weight": 0.25})
        == {"norm.weight": 0.25}
    )


def test_the_table_marks_the_best_with_a_star(tmp_path: Path) -> None:
    append_line(tmp_path / "metrics.jsonl", round_line(1, 0.1, "pfsr"))
    worse = {**round_line(1, 0.1, "fed-avg"), "test/seen-filtered/ndcg@10": 0.15}
    append_line(tmp_path / "metrics.jsonl", worse)
    table = final_table(tmp_path).splitlines()
    (mine,) = [line for line in table if line.strip().startswith("pfsr")]
    (other,) = [line for line in table if line.strip().startswith("fed-avg")]
    place = 3 + [metric.name for metric in headline_metrics()].index("ndcg@10")
    assert mine.split()[place] == ".200*"
    assert other.split()[place] == ".150"
    assert all(len(line) <= 120 for line in table)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "–"), (999, "999 B"), (1500, "1.5 kB"), (99_840_000, "99.8 MB"), (2e12, "2000 GB")],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(2.34, "2.3 s"), (197.3, "3 min 17 s"), (612, "10 min"), (7260, "2 h 01 min")],
)
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text


def test_shares() -> None:
    assert share(0.1694) == ".169"
    assert share(1.0) == "1.000"


def test_the_core_does_not_load_matplotlib() -> None:
    code = (
        "import sys, pfsr_core.reports.page, pfsr.cli.main; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def clients_of(run: Path, partition: str, names: list[str]) -> str:
    """The final table of a run with such clients, each with one method's and another's row."""
    config = json.loads((run / "config.json").read_text("utf-8"))
    changes = {"federation.partition": partition, "algorithm.name": "fecosr"}
    (run / "config.json").write_text(json.dumps({**config, **changes}))
    rows = [
        {
            "method": method,
            "client": name,
            "users": 2 + place,
            "interactions": 9,
            "split": "test",
            "hr@10_sum": 1,
            "ndcg@10_sum": gain * (2 + place),
            "covered": 1,
            "shipped": "local" if method == "fecosr" else "",
        }
        for place, name in enumerate(names)
        for method, gain in (("fecosr", 0.25), ("fecosr: local", 0.125))
    ]
    write_clients(run / "clients.csv", rows)
    return final_table(run)


def test_few_clients_have_a_row_each_and_say_what_they_ship(run: Path) -> None:
    lines = clients_of(run, "group", ["us", "fr"]).splitlines()
    cells = [line.replace("–", "").split() for line in lines]  # a dash: a metric of later
    found = [row for row in cells if row[:1] in (["us"], ["fr"])]
    assert found == [
        ["fr", "3", ".333", ".250", ".125", "local"],
        ["us", "2", ".500", ".250", ".125", "local"],
    ]
    write_report(run)
    assert "Client by client" in (run / "report.html").read_text("utf-8")


@pytest.mark.parametrize(("partition", "shown"), [("group", False), ("column", True)])
def test_many_clients_have_rows_only_where_their_names_mean_something(
    run: Path, partition: str, shown: bool
) -> None:
    table = clients_of(run, partition, [f"market-{i:02d}" for i in range(30)])
    assert ("market-07" in table) == shown
