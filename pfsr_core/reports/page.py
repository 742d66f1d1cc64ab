"""The report page of a run: ``report.html`` in its directory, one self-contained file.

Sections without data are left out, so the page of an unfinished run is shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from pfsr_core.evaluation.metrics.registry import FILTERED
from pfsr_core.files import staged
from pfsr_core.reports import html, item_map_plot, plots
from pfsr_core.reports.client_table import client_table
from pfsr_core.reports.columns import (
    SAMPLED_NOTE,
    Column,
    best_value,
    cell,
    duration,
    sampled_columns,
    sampled_rows,
    share,
    table_columns,
)
from pfsr_core.reports.queries import ALONE, main_algorithm, ranked_among, vectors_note, wins
from pfsr_core.reports.style import colour
from pfsr_core.runs.files import Method, RunRecord, methods
from pfsr_core.runs.item_map import read_item_maps
from pfsr_core.runs.reading import read_run

HR = f"test/{FILTERED}/hr@10"
NDCG = f"test/{FILTERED}/ndcg@10"
FILE_NAME = "report.html"
PAIRWISE = ("pfedrec",)  # algorithms trained on items against negatives instead of next items
TABLE_NOTE = (
    "Leave-one-out test items; the round is selected on validation NDCG@10. Seen items filtered: "
    "items of the user's history are no candidates, as in what a user is shown. Seen items "
    "included: they are candidates too, as in some published tables. Coverage: share of the test "
    "items that occur in the client's own training data."
)


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into ``run_dir`` atomically. Raises RunError."""
    path = run_dir / FILE_NAME
    with staged(path) as stage:
        stage.write_text(render(read_run(run_dir)), "utf-8")
    return path


def render(record: RunRecord) -> str:
    """The HTML of the page."""
    rows = methods(record)
    body = [
        _header(record, rows),
        html.facts(_facts(record)),
        html.section("Final table", TABLE_NOTE, _table(record, rows)),
        html.section("Sampled-99, not a headline", f"Test items, {SAMPLED_NOTE}.", _sampled(rows)),
        html.section(
            "Convergence",
            "Validation NDCG@10 after each round, seen items filtered. The ring marks the selected "
            "round; dashed grey lines are the baselines.",
            plots.convergence(record),
        ),
        html.section("Client by client", _client_note(record), _client_rows(record)),
        html.section("Clients", _clients_note(record), plots.client_distribution(record)),
        html.side_by_side(
            html.section(
                "Bytes against accuracy",
                "All clients together, both directions. Further left and higher is better.",
                plots.traffic(record),
                pair=True,
            ),
            html.section(
                "Training loss",
                _loss_note(record),
                plots.losses(record),
                pair=True,
            ),
        ),
        html.section(
            "What stays on the clients",
            "Share of each tensor's coordinates that the Fisher mask keeps local, round by round.",
            plots.mask_ratio_map(record),
        ),
        html.section(
            "What personalization does to the items",
            item_map_plot.NOTE,
            item_map_plot.item_map_svg(read_item_maps(record)),
        ),
        html.folded("Settings, data and environment", _details(record)),
        f"<footer>Run <code>{escape(record.name)}</code>. Figures come from the files beside this "
        "page: summary.json, metrics.jsonl, clients.csv.</footer>",
    ]
    return html.page(f"{record.name}: results", filter(None, body))


def headline(record: RunRecord, rows: Sequence[Method]) -> str:
    """The answer in one line."""
    name = main_algorithm(record)
    main = next((row for row in rows if row.name == name and HR in row.metrics), None)
    if main is None:
        return f"{name}: no test results yet"
    text = f"{name} puts the next item into the top 10 for {main.metrics[HR]:.1%} of the users"
    rival = _rival(main, rows)
    if rival is None:
        return text
    return f"{text}; {rival.name} for {rival.metrics[HR]:.1%}"


def _rival(main: Method, rows: Sequence[Method]) -> Method | None:
    """Who the headline compares with: training alone, else the best of the others."""
    others = [row for row in rows if row.name != main.name and row.kind != "variant"]
    others = [row for row in others if HR in row.metrics]
    alone = [row for row in others if row.name == ALONE]
    return next(iter(alone or others), None)


def _header(record: RunRecord, rows: Sequence[Method]) -> str:
    done = max((line["round"] for line in record.rounds), default=0)
    tag = "" if record.finished else f"not finished: {done} rounds so far"
    lead = f"{_lead(record, rows)} {vectors_note(record)}".strip()
    return html.header(_eyebrow(record), headline(record, rows), lead, tag)


def _eyebrow(record: RunRecord) -> str:
    source = str(record.data.get("source") or "").rstrip("/").rsplit("/", 1)[-1]
    return " · ".join(filter(None, (record.name, source)))


def _lead(record: RunRecord, rows: Sequence[Method]) -> str:
    name = main_algorithm(record)
    main = next((row for row in rows if row.name == name and HR in row.metrics), None)
    users = _users(record)
    if main is None:
        return "Results appear here with the first evaluated round."
    hr = main.metrics[HR]
    error = f" (± {share(math.sqrt(hr * (1 - hr) / users))} standard error)" if users else ""
    sentence = f"HR@10 {share(hr)}{error}, NDCG@10 {share(main.metrics.get(NDCG, 0.0))} on held-out"
    version = {"": "", "finetuned": ", finetuned after the last round"}.get(
        main.version, f", the model of {main.version}"
    )
    best = max((row for row in rows if row.kind == "baseline"), key=_hr, default=None)
    against = f" The best baseline, {best.name}, has HR@10 {share(_hr(best))}." if best else ""
    return f"{sentence} last items, ranked among {ranked_among(record)}{version}.{against}"


def _hr(row: Method) -> float:
    return row.metrics.get(HR, 0.0)


def _users(record: RunRecord) -> int:
    return int(record.summary.get("users") or record.data.get("split_users") or 0)


def _facts(record: RunRecord) -> dict[str, str]:
    summary, data = record.summary, record.data
    known = {
        "users": _users(record),
        "clients": summary.get("clients") or len({row.client for row in record.clients}),
        "items": data.get("items"),
        "interactions": data.get("interactions"),
        "rounds": max((line["round"] for line in record.rounds), default=0),
    }
    cards = {label: f"{value:,}" for label, value in known.items() if value}
    if "protocol" in summary:
        cards["protocol"] = summary["protocol"]
    seconds = summary.get("seconds")
    return cards | ({"wall time": duration(seconds)} if seconds else {})


def _table(record: RunRecord, rows: Sequence[Method]) -> str:
    if not rows:
        return ""
    columns = table_columns()
    bests = [best_value(column, rows) for column in columns]
    titles = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    body = "".join(_row(record, row, columns, bests) for row in rows)
    return (
        f"<table><thead>{_group_headings(columns)}<tr><th>method</th>{titles}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _group_headings(columns: Sequence[Column]) -> str:
    """The row of headings that stand over several columns each."""
    groups = "".join(
        f'<th colspan="{len(list(members))}">{escape(name)}</th>'
        for name, members in groupby(columns, key=lambda column: column.group)
    )
    return f'<tr class="groups"><th></th>{groups}</tr>'


def _sampled(rows: Sequence[Method]) -> str:
    chosen = sampled_rows(rows)
    if not chosen:
        return ""
    columns = sampled_columns()
    titles = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    body = "".join(
        f"<tr><td>{escape(row.name)}<small>{escape(row.version)}</small></td>"
        + "".join(f"<td>{escape(cell(column, row))}</td>" for column in columns)
        + "</tr>"
        for row in chosen
    )
    return f"<table><thead><tr><th>method</th>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _client_note(record: RunRecord) -> str:
    table = client_table(record, baselines=True)
    return table.note if table else ""


def _client_rows(record: RunRecord) -> str:
    table = client_table(record, baselines=True)
    if table is None:
        return ""
    titles = "".join(f"<th>{escape(title)}</th>" for title in table.titles)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in table.rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"


def _row(
    record: RunRecord, row: Method, columns: Sequence[Column], bests: Sequence[float | None]
) -> str:
    main = row.name == main_algorithm(record)
    note = "baseline" if row.kind == "baseline" else row.version
    label = f"{html.dot(colour(row.name, record))}{escape(row.name)}"
    cells = "".join(
        f"<td{_mark(column.value(row), best)}>{escape(cell(column, row))}</td>"
        for column, best in zip(columns, bests, strict=True)
    )
    mark = ' class="main"' if main else ""
    return f"<tr{mark}><td>{label}<small>{escape(note)}</small></td>{cells}</tr>"


def _mark(value: float | None, best: float | None) -> str:
    return ' class="best"' if value is not None and value == best else ""


def _clients_note(record: RunRecord) -> str:
    main = main_algorithm(record)
    note = f"Test NDCG@10 of every client after the last round, sorted by {main}."
    ahead, compared = wins(record)
    if not compared:
        return note
    return f"{note} {main} is ahead of {ALONE} on {ahead} of {compared} clients."


def _loss_note(record: RunRecord) -> str:
    """What the loss of each algorithm is a mean of; pairs have another loss than next items."""
    if main_algorithm(record) in PAIRWISE:
        return "Binary cross-entropy of items and sampled negatives, mean of a round."
    return "Cross-entropy of the next item among those that the client ranks, mean of a round."


def _details(record: RunRecord) -> dict[str, dict[str, object]]:
    return {
        "Settings": record.config,
        "Data": record.data,
        "Environment": record.environment,
    }
