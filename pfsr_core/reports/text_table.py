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
from pfsr_core.reports.queries import ranked_among, vectors_note
from pfsr_core.runs.files import Method, RunRecord, methods
from pfsr_core.runs.reading import read_run

LEGEND = (
    "HR, NDCG: means over the users, seen items filtered out of the candidates; "
    f"{SEEN_INCLUDED!r}: seen items included. * best"
)


def final_table(directory: Path, width: int = 120) -> str:
    """The methods of the run in ``directory``. Raises RunError."""
    return table_text(read_run(directory), width)


def table_text(record: RunRecord, width: int = 120) -> str:
    """The methods of a run under its title, then its clients where these are few."""
    rows = methods(record)
    if not rows:
        return f"{record.name}: no method has results yet."
    notes = _client_table_text(record, width) + vectors_note(record)
    return methods_text(_title(record), rows, width) + notes


def methods_text(title: str, rows: Sequence[Method], width: int = 120) -> str:
    """A table of ``rows`` under ``title``; the best of each metric carries a star."""
    columns = table_columns()
    bests = [best_value(column, rows) for column in columns]
    lines = [
        [_label(row), *(_marked(c, row, best) for c, best in zip(columns, bests, strict=True))]
        for row in rows
    ]
    text = _grid(title, ["method\n", *map(_heading, columns)], lines, width)
    return f"{text}\n{LEGEND}\n{_sampled_text(rows)}"


def clients_text(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of clients.csv as a table of clients by methods: headline metrics of the test items."""
    tests = [row for row in rows if row["split"] == "test"]
    names = list(dict.fromkeys(row["method"] for row in tests))
    by_client = {(row["client"], row["method"]): row for row in tests}
    width = max(len(str(row["client"])) for row in tests)
    lines = [f"{'':<{width}}  {'users':>6}" + "".join(f"{name:>18}" for name in names)]
    for client in dict.fromkeys(row["client"] for row in tests):
        of_client = [by_client[client, name] for name in names]
        cells = "".join(f"{_client_means(row):>18}" for row in of_client)
        lines.append(f"{client:<{width}}  {of_client[0]['users']:>6}{cells}")
    titles = " / ".join(metric.title for metric in headline_metrics())
    return "\n".join([f"{title}: {titles}, seen items filtered", *lines])


def _client_table_text(record: RunRecord, width: int) -> str:
    table = client_table(record, baselines=False)
    if table is None:
        return ""
    return f"\n{_grid(table.note, table.titles, table.rows, width, wrap=True)}\n"


def _title(record: RunRecord) -> str:
    users = record.summary.get("users") or record.data.get("split_users")
    state = "" if record.finished else ", not finished"
    people = f", {users:,} users" if users else ""
    protocol = record.summary.get("protocol", STRICT.name)
    other = "" if protocol == STRICT.name else f", protocol {protocol}"
    return f"{record.name}{people}{state}: test items among {ranked_among(record)}{other}"


def _heading(column: Column) -> str:
    """The title, and below it whether seen items are included."""
    return f"{column.title}\n{SEEN_INCLUDED if column.group == INCLUDED_GROUP else ''}"


def _grid(
    title: str, titles: Sequence[str], rows: Sequence[Sequence[str]], width: int, wrap: bool = False
) -> str:
    """Text in columns, the first one to the left."""
    # Only who prints a table needs rich; a node does not.
    from rich import box
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for place, name in enumerate(titles):
        justify: JustifyMethod = "right" if place else "left"
        table.add_column(name, justify=justify, no_wrap=not (wrap and place), overflow="fold")
    for row in rows:
        table.add_row(*row)
    output = StringIO()
    console = Console(file=output, width=width, no_color=True, highlight=False, markup=False)
    console.print(table)
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    return "\n".join(line for line in lines if line)


def _client_means(row: Mapping[str, Any]) -> str:
    users = max(1, row["users"])
    return " / ".join(share(row[f"{metric.name}_sum"] / users) for metric in headline_metrics())


def _sampled_text(rows: Sequence[Method]) -> str:
    """A line for each row that was ranked among sampled items too, apart from the table."""
    chosen = sampled_rows(rows)
    if not chosen:
        return ""
    columns = sampled_columns()
    width = max(len(_label(row)) for row in chosen)
    titles = " / ".join(column.title for column in columns)
    lines = [
        f"  {_label(row):{width}}  " + " / ".join(cell(column, row) for column in columns)
        for row in chosen
    ]
    return "\n".join([f"{SAMPLED_NOTE}; {titles}", *lines]) + "\n"


def _marked(column: Column, row: Method, best: float | None) -> str:
    text = cell(column, row)
    return text if best is None else text + ("*" if column.value(row) == best else " ")


def _label(row: Method) -> str:
    if row.kind == "baseline":
        return f"{row.name} (baseline)"
    return f"{row.name} ({row.version})" if row.version else row.name
