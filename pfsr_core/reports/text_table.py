"""The tables of a run as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pfsr_core.data.protocols import STRICT
from pfsr_core.evaluation.metrics.registry import headline_metrics
from pfsr_core.reports.client_table import client_table
from pfsr_core.reports.columns import (
    INCLUDED_GROUP,
    SAMPLED_NOTE,
    SEEN_INCLUDED,
    Column,
    best_value,
    cell,
    sampled_columns,
    sampled_rows,
    share,
    table_columns,
)
from pfsr_core.reports.queries import candidate_description, vectors_note
from pfsr_core.runs.files import Method, RunRecord, methods
from pfsr_core.runs.reading import read_run

LEGEND = (
    "HR, NDCG: means over the users, seen items filtered out of the candidates; "
    f"{SEEN_INCLUDED!r}: seen items included. * best"
)


def final_table(run_directory: Path, console_width: int = 120) -> str:
    """The methods of the run in ``run_directory``. Raises RunError."""
    return table_text(read_run(run_directory), console_width)


def table_text(record: RunRecord, console_width: int = 120) -> str:
    """The methods of a run under its title, then its clients where these are few."""
    method_rows = methods(record)
    if not method_rows:
        return f"{record.name}: no method has results yet."
    table_notes = _client_table_text(record, console_width) + vectors_note(record)
    return methods_text(_title(record), method_rows, console_width) + table_notes


def methods_text(title: str, method_rows: Sequence[Method], console_width: int = 120) -> str:
    """A table of ``method_rows`` under ``title``; the best of each metric carries a star."""
    columns = table_columns()
    best_values = [best_value(column, method_rows) for column in columns]
    cell_rows = [
        [
            _label(method_row),
            *(_marked(c, method_row, best) for c, best in zip(columns, best_values, strict=True)),
        ]
        for method_row in method_rows
    ]
    grid_text = _grid(title, ["method\n", *map(_heading, columns)], cell_rows, console_width)
    return f"{grid_text}\n{LEGEND}\n{_sampled_text(method_rows)}"


def clients_text(title: str, client_rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of clients.csv as a table of clients by methods: headline metrics of the test items."""
    test_rows = [client_row for client_row in client_rows if client_row["split"] == "test"]
    method_names = list(dict.fromkeys(client_row["method"] for client_row in test_rows))
    by_client = {
        (client_row["client"], client_row["method"]): client_row for client_row in test_rows
    }
    name_width = max(len(str(client_row["client"])) for client_row in test_rows)
    text_lines = [
        f"{'':<{name_width}}  {'users':>6}"
        + "".join(f"{method_name:>18}" for method_name in method_names)
    ]
    for client_name in dict.fromkeys(client_row["client"] for client_row in test_rows):
        of_client = [by_client[client_name, method_name] for method_name in method_names]
        value_cells = "".join(f"{_client_means(client_row):>18}" for client_row in of_client)
        text_lines.append(f"{client_name:<{name_width}}  {of_client[0]['users']:>6}{value_cells}")
    metric_titles = " / ".join(metric.title for metric in headline_metrics())
    return "\n".join([f"{title}: {metric_titles}, seen items filtered", *text_lines])


def _client_table_text(record: RunRecord, console_width: int) -> str:
    clients_table = client_table(record, baselines=False)
    if clients_table is None:
        return ""
    grid_text = _grid(
        clients_table.note, clients_table.titles, clients_table.rows, console_width, wrap=True
    )
    return f"\n{grid_text}\n"


def _title(record: RunRecord) -> str:
    num_users = record.summary.get("users") or record.data.get("split_users")
    state_text = "" if record.finished else ", not finished"
    users_text = f", {num_users:,} users" if num_users else ""
    protocol = record.summary.get("protocol", STRICT.name)
    protocol_text = "" if protocol == STRICT.name else f", protocol {protocol}"
    candidates_text = f"test items among {candidate_description(record)}"
    return f"{record.name}{users_text}{state_text}: {candidates_text}{protocol_text}"


def _heading(column: Column) -> str:
    """The title, and below it whether seen items are included."""
    return f"{column.title}\n{SEEN_INCLUDED if column.group == INCLUDED_GROUP else ''}"


def _grid(
    title: str,
    column_titles: Sequence[str],
    cell_rows: Sequence[Sequence[str]],
    console_width: int,
    wrap: bool = False,
) -> str:
    """Text in columns, the first one to the left."""
    # Only who prints a table needs rich; a node does not.
    from rich import box
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column_index, column_title in enumerate(column_titles):
        justify: JustifyMethod = "right" if column_index else "left"
        table.add_column(
            column_title, justify=justify, no_wrap=not (wrap and column_index), overflow="fold"
        )
    for cell_row in cell_rows:
        table.add_row(*cell_row)
    text_buffer = StringIO()
    console = Console(
        file=text_buffer, width=console_width, no_color=True, highlight=False, markup=False
    )
    console.print(table)
    text_lines = [text_line.rstrip() for text_line in text_buffer.getvalue().splitlines()]
    return "\n".join(text_line for text_line in text_lines if text_line)


def _client_means(client_row: Mapping[str, Any]) -> str:
    num_users = max(1, client_row["users"])
    return " / ".join(
        share(client_row[f"{metric.name}_sum"] / num_users) for metric in headline_metrics()
    )


def _sampled_text(method_rows: Sequence[Method]) -> str:
    """A line for each row that was ranked among sampled items too, apart from the table."""
    chosen_rows = sampled_rows(method_rows)
    if not chosen_rows:
        return ""
    columns = sampled_columns()
    label_width = max(len(_label(method_row)) for method_row in chosen_rows)
    column_titles = " / ".join(column.title for column in columns)
    text_lines = [
        f"  {_label(method_row):{label_width}}  "
        + " / ".join(cell(column, method_row) for column in columns)
        for method_row in chosen_rows
    ]
    return "\n".join([f"{SAMPLED_NOTE}; {column_titles}", *text_lines]) + "\n"


def _marked(column: Column, method_row: Method, best: float | None) -> str:
    cell_text = cell(column, method_row)
    return (
        cell_text
        if best is None
        else cell_text + ("*" if column.value(method_row) == best else " ")
    )


def _label(method_row: Method) -> str:
    if method_row.kind == "baseline":
        return f"{method_row.name} (baseline)"
    return f"{method_row.name} ({method_row.version})" if method_row.version else method_row.name
