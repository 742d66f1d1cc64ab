"""The report page of a run: ``report.html`` in its directory, one self-contained file.

Sections without data are left out, so the page of an unfinished run is shorter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from pfsr_core.assembly.registries import labels_of
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
from pfsr_core.reports.queries import (
    ALONE,
    candidate_description,
    main_algorithm,
    vectors_note,
    wins,
)
from pfsr_core.reports.style import colour
from pfsr_core.runs.files import Method, RunRecord, methods
from pfsr_core.runs.item_map import read_item_maps
from pfsr_core.runs.reading import read_run

HR = f"test/{FILTERED}/hr@10"
NDCG = f"test/{FILTERED}/ndcg@10"
FILE_NAME = "report.html"
TABLE_NOTE = (
    "Leave-one-out test items; the round is selected on validation NDCG@10. Seen items filtered: "
    "items of the user's history are no candidates, as in what a user is shown. Seen items "
    "included: they are candidates too, as in some published tables. Coverage: share of the test "
    "items that occur in the client's own training data."
)


def write_report(run_dir: Path) -> Path:
    """Writes ``report.html`` into ``run_dir`` atomically. Raises RunError."""
    report_path = run_dir / FILE_NAME
    with staged(report_path) as stage_path:
        stage_path.write_text(render(read_run(run_dir)), "utf-8")
    return report_path


def render(record: RunRecord) -> str:
    """The HTML of the page."""
    method_rows = methods(record)
    body_parts = [
        _header(record, method_rows),
        html.facts(_facts(record)),
        html.section("Final table", TABLE_NOTE, _table(record, method_rows)),
        html.section(
            "Sampled-99, not a headline", f"Test items, {SAMPLED_NOTE}.", _sampled(method_rows)
        ),
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
                is_pair=True,
            ),
            html.section(
                "Training loss",
                _loss_note(record),
                plots.losses(record),
                is_pair=True,
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
    return html.page(f"{record.name}: results", filter(None, body_parts))


def headline(record: RunRecord, method_rows: Sequence[Method]) -> str:
    """The answer in one line."""
    main_name = main_algorithm(record)
    main_row = _main_row(main_name, method_rows)
    if main_row is None:
        return f"{main_name}: no test results yet"
    main_share = f"{main_row.metrics[HR]:.1%}"
    main_text = f"{main_name} puts the next item into the top 10 for {main_share} of the users"
    rival_row = _rival(main_row, method_rows)
    if rival_row is None:
        return main_text
    return f"{main_text}; {rival_row.name} for {rival_row.metrics[HR]:.1%}"


def _main_row(main_name: str, method_rows: Sequence[Method]) -> Method | None:
    """The row of the run's own algorithm, None while it has no test results."""
    return next((row for row in method_rows if row.name == main_name and HR in row.metrics), None)


def _rival(main_row: Method, method_rows: Sequence[Method]) -> Method | None:
    """Who the headline compares with: training alone, else the best of the others."""
    other_rows = [
        method_row
        for method_row in method_rows
        if method_row.name != main_row.name and method_row.kind != "variant"
    ]
    other_rows = [method_row for method_row in other_rows if HR in method_row.metrics]
    alone_rows = [method_row for method_row in other_rows if method_row.name == ALONE]
    return next(iter(alone_rows or other_rows), None)


def _header(record: RunRecord, method_rows: Sequence[Method]) -> str:
    last_round = max((round_line["round"] for round_line in record.rounds), default=0)
    tag_text = "" if record.finished else f"not finished: {last_round} rounds so far"
    lead_text = f"{_lead(record, method_rows)} {vectors_note(record)}".strip()
    return html.header(_eyebrow(record), headline(record, method_rows), lead_text, tag_text)


def _eyebrow(record: RunRecord) -> str:
    data_source = str(record.data.get("source") or "").rstrip("/").rsplit("/", 1)[-1]
    return " · ".join(filter(None, (record.name, data_source)))


def _lead(record: RunRecord, method_rows: Sequence[Method]) -> str:
    main_name = main_algorithm(record)
    main_row = _main_row(main_name, method_rows)
    num_users = _users(record)
    if main_row is None:
        return "Results appear here with the first evaluated round."
    hit_rate = main_row.metrics[HR]
    error_text = (
        f" (± {share(math.sqrt(hit_rate * (1 - hit_rate) / num_users))} standard error)"
        if num_users
        else ""
    )
    ndcg_text = share(main_row.metrics.get(NDCG, 0.0))
    metrics_text = f"HR@10 {share(hit_rate)}{error_text}, NDCG@10 {ndcg_text} on held-out"
    version_text = {"": "", "finetuned": ", finetuned after the last round"}.get(
        main_row.version, f", the model of {main_row.version}"
    )
    best_baseline = max(
        (method_row for method_row in method_rows if method_row.kind == "baseline"),
        key=_hr,
        default=None,
    )
    baseline_text = (
        f" The best baseline, {best_baseline.name}, has HR@10 {share(_hr(best_baseline))}."
        if best_baseline
        else ""
    )
    return (
        f"{metrics_text} last items, ranked among {candidate_description(record)}{version_text}."
        f"{baseline_text}"
    )


def _hr(method_row: Method) -> float:
    return method_row.metrics.get(HR, 0.0)


def _users(record: RunRecord) -> int:
    return int(record.summary.get("users") or record.data.get("split_users") or 0)


def _facts(record: RunRecord) -> dict[str, str]:
    summary, data_facts = record.summary, record.data
    known_counts = {
        "users": _users(record),
        "clients": summary.get("clients")
        or len({client_result.client for client_result in record.clients}),
        "items": data_facts.get("items"),
        "interactions": data_facts.get("interactions"),
        "rounds": max((round_line["round"] for round_line in record.rounds), default=0),
    }
    fact_cards = {label: f"{value:,}" for label, value in known_counts.items() if value}
    if "protocol" in summary:
        fact_cards["protocol"] = summary["protocol"]
    wall_seconds = summary.get("seconds")
    return fact_cards | ({"wall time": duration(wall_seconds)} if wall_seconds else {})


def _table(record: RunRecord, method_rows: Sequence[Method]) -> str:
    if not method_rows:
        return ""
    columns = table_columns()
    best_values = [best_value(column, method_rows) for column in columns]
    title_cells = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    body_html = "".join(
        _row(record, method_row, columns, best_values) for method_row in method_rows
    )
    return (
        f"<table><thead>{_group_headings(columns)}<tr><th>method</th>{title_cells}</tr></thead>"
        f"<tbody>{body_html}</tbody></table>"
    )


def _group_headings(columns: Sequence[Column]) -> str:
    """The row of headings that stand over several columns each."""
    group_cells = "".join(
        f'<th colspan="{len(list(members))}">{escape(group_title)}</th>'
        for group_title, members in groupby(columns, key=lambda column: column.group)
    )
    return f'<tr class="groups"><th></th>{group_cells}</tr>'


def _sampled(method_rows: Sequence[Method]) -> str:
    chosen_rows = sampled_rows(method_rows)
    if not chosen_rows:
        return ""
    columns = sampled_columns()
    title_cells = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    body_html = "".join(
        f"<tr><td>{escape(method_row.name)}<small>{escape(method_row.version)}</small></td>"
        + "".join(f"<td>{escape(cell(column, method_row))}</td>" for column in columns)
        + "</tr>"
        for method_row in chosen_rows
    )
    return (
        f"<table><thead><tr><th>method</th>{title_cells}</tr></thead>"
        f"<tbody>{body_html}</tbody></table>"
    )


def _client_note(record: RunRecord) -> str:
    table = client_table(record, baselines=True)
    return table.note if table else ""


def _client_rows(record: RunRecord) -> str:
    table = client_table(record, baselines=True)
    if table is None:
        return ""
    title_cells = "".join(f"<th>{escape(title)}</th>" for title in table.titles)
    body_html = "".join(
        "<tr>" + "".join(f"<td>{escape(cell_text)}</td>" for cell_text in text_row) + "</tr>"
        for text_row in table.rows
    )
    return f"<table><thead><tr>{title_cells}</tr></thead><tbody>{body_html}</tbody></table>"


def _row(
    record: RunRecord,
    method_row: Method,
    columns: Sequence[Column],
    best_values: Sequence[float | None],
) -> str:
    is_main = method_row.name == main_algorithm(record)
    row_note = "baseline" if method_row.kind == "baseline" else method_row.version
    name_cell = f"{html.dot(colour(method_row.name, record))}{escape(method_row.name)}"
    value_cells = "".join(
        f"<td{_mark(column.value(method_row), best)}>{escape(cell(column, method_row))}</td>"
        for column, best in zip(columns, best_values, strict=True)
    )
    row_class = ' class="main"' if is_main else ""
    return f"<tr{row_class}><td>{name_cell}<small>{escape(row_note)}</small></td>{value_cells}</tr>"


def _mark(cell_value: float | None, best: float | None) -> str:
    return ' class="best"' if cell_value is not None and cell_value == best else ""


def _clients_note(record: RunRecord) -> str:
    main_method = main_algorithm(record)
    base_note = f"Test NDCG@10 of every client after the last round, sorted by {main_method}."
    num_ahead, num_compared = wins(record)
    if not num_compared:
        return base_note
    return (
        f"{base_note} {main_method} is ahead of {ALONE} on {num_ahead} of {num_compared} clients."
    )


def _loss_note(record: RunRecord) -> str:
    """What the training loss of the main algorithm is a mean of."""
    return f"{labels_of(main_algorithm(record)).loss}, mean of a round."


def _details(record: RunRecord) -> dict[str, dict[str, object]]:
    return {
        "Settings": record.config,
        "Data": record.data,
        "Environment": record.environment,
    }
