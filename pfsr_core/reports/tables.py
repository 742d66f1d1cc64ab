"""The final table of a run: its columns, and the table as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from pfsr_core.assembly.registries import labels_of
from pfsr_core.data.protocols import STRICT
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.items.text_vectors import CO_OCCURRENCE, COLLABORATIVE
from pfsr_core.reports.queries import main_algorithm
from pfsr_core.runs.files import ClientResult, Method, RunRecord, methods
from pfsr_core.runs.reading import read_run

UNKNOWN = "–"
LEGEND = (
    "HR and NDCG at 10, history excluded; 'kept': with the history among the candidates. * best"
)


@dataclass(frozen=True)
class Column:
    """``value`` of a method, or None when it is not known; ``best`` marks the highest one."""

    title: str
    value: Callable[[Method], float | None]
    show: Callable[[float], str]
    best: bool = False


def share(value: float) -> str:
    """.169 for 0.1694, without the zero that says nothing."""
    return f"{value:.3f}".removeprefix("0")


def percent(value: float) -> str:
    return f"{value:.0%}"


def size(value: float) -> str:
    """Bytes with a decimal unit, 0 as a dash."""
    if not value:
        return UNKNOWN
    power = min(3, int(math.log10(max(value, 1)) // 3))
    amount = value / 1000**power
    return f"{amount:.{0 if power == 0 or amount >= 100 else 1}f} {('B', 'kB', 'MB', 'GB')[power]}"


def duration(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 10:
        return f"{minutes} min {seconds:02d} s"
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def metric(name: str) -> Callable[[Method], float | None]:
    return lambda method: method.metrics.get(name)


COLUMNS = (
    Column("HR@10", metric("test/excluded/hr@10"), share, best=True),
    Column("NDCG@10", metric("test/excluded/ndcg@10"), share, best=True),
    Column("HR kept", metric("test/kept/hr@10"), share, best=True),
    Column("NDCG kept", metric("test/kept/ndcg@10"), share, best=True),
    Column("coverage", metric("test/covered"), percent),
    Column("down", lambda method: method.bytes_down, size),
    Column("up", lambda method: method.bytes_up, size),
    Column("time", lambda method: method.seconds, duration),
)

SAMPLED_COLUMNS = (
    Column("HR@10", metric("test/sampled-99/hr@10"), share),
    Column("NDCG@10", metric("test/sampled-99/ndcg@10"), share),
)
SAMPLED_NOTE = (
    "sampled-99: among 99 items that the user never touched, to be compared with published tables "
    "of federated recommenders only; it orders methods otherwise than the whole catalogue does"
)


def sampled_rows(rows: Sequence[Method]) -> list[Method]:
    """Those that were ranked among sampled items too."""
    return [row for row in rows if SAMPLED_COLUMNS[0].value(row) is not None]


def cell(column: Column, method: Method) -> str:
    value = column.value(method)
    return UNKNOWN if value is None else column.show(value)


def best_value(column: Column, rows: Sequence[Method]) -> float | None:
    """The highest value of a column in which the best is marked."""
    values = [value for row in rows if (value := column.value(row)) is not None]
    return max(values) if column.best and values else None


def final_table(directory: Path, width: int = 120) -> str:
    """The methods of the run in ``directory`` as plain text. Raises RunError."""
    return table_text(read_run(directory), width)


def table_text(record: RunRecord, width: int = 120) -> str:
    """The table with its title; the best of each metric carries a star. Few clients have theirs."""
    rows = methods(record)
    if not rows:
        return f"{record.name}: no method has results yet."
    notes = _clients_text(record, width) + vectors_note(record)
    return methods_text(_title(record), rows, width) + notes


def _clients_text(record: RunRecord, width: int) -> str:
    table = client_table(record, baselines=False)
    if table is None:
        return ""
    return f"\n{_grid(table.note, table.titles, table.rows, width, wrap=True)}\n"


def vectors_note(record: RunRecord) -> str:
    """What must be said of the item vectors of a run, if anything."""
    pooled = record.config.get("model.item-vectors") == CO_OCCURRENCE
    return f"{COLLABORATIVE}\n" if pooled else ""


def _title(record: RunRecord) -> str:
    users = record.summary.get("users") or record.data.get("split_users")
    state = "" if record.finished else ", not finished"
    people = f", {users:,} users" if users else ""
    protocol = record.summary.get("protocol", STRICT.name)
    other = "" if protocol == STRICT.name else f", protocol {protocol}"
    return f"{record.name}{people}{state}: test items among {ranked_among(record)}{other}"


def ranked_among(record: RunRecord) -> str:
    """Which items a held-out one competes with."""
    own = record.config.get("federation.catalogues") == "own"
    return "the client's own catalogue" if own else "the whole catalogue"


def methods_text(title: str, rows: Sequence[Method], width: int = 120) -> str:
    """A table of ``rows`` under ``title``; the best of each metric carries a star."""
    bests = [best_value(column, rows) for column in COLUMNS]
    lines = [
        [_label(row), *(_marked(c, row, best) for c, best in zip(COLUMNS, bests, strict=True))]
        for row in rows
    ]
    text = _grid(title, ["method", *(column.title for column in COLUMNS)], lines, width)
    return f"{text}\n{LEGEND}\n{_sampled_text(rows)}"


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


def clients_text(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of clients.csv as a table of clients by methods: HR@10 / NDCG@10 of the test items."""
    tests = [row for row in rows if row["split"] == "test"]
    names = list(dict.fromkeys(row["method"] for row in tests))
    found = {(row["client"], row["method"]): row for row in tests}
    width = max(len(str(row["client"])) for row in tests)
    lines = [f"{'':<{width}}  {'users':>6}" + "".join(f"{name:>18}" for name in names)]
    for client in dict.fromkeys(row["client"] for row in tests):
        of_client = [found[client, name] for name in names]
        cells = "".join(f"{_pair(row):>18}" for row in of_client)
        lines.append(f"{client:<{width}}  {of_client[0]['users']:>6}{cells}")
    return "\n".join([f"{title}: HR@10 / NDCG@10, history excluded", *lines])


def _pair(row: Mapping[str, Any]) -> str:
    users = max(1, row["users"])
    return " / ".join(share(row[f"{name}@10_sum"] / users) for name in ("hr", "ndcg"))


def _sampled_text(rows: Sequence[Method]) -> str:
    """A line for each row with the view "sampled-99", below the table and apart from it."""
    chosen = sampled_rows(rows)
    if not chosen:
        return ""
    width = max(len(_label(row)) for row in chosen)
    titles = " / ".join(column.title for column in SAMPLED_COLUMNS)
    lines = [
        f"  {_label(row):{width}}  " + " / ".join(cell(column, row) for column in SAMPLED_COLUMNS)
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


FEW = 10  # clients that have rows of their own whoever they are


NOTE = "Test items, history excluded; HR@10 and NDCG@10 of {main}, NDCG@10 of the others."


@dataclass(frozen=True)
class ClientTable:
    """``rows`` of text under ``titles``, the client with the most users first."""

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def client_table(record: RunRecord, baselines: bool) -> ClientTable | None:
    """What each client reached with each method, and how the main one ended where it says so.

    With ``baselines`` these have columns too. None where there is one client, or more than FEW that
    are no values of a column.
    """
    main = main_algorithm(record)
    by_client: dict[str, dict[str, ClientResult]] = {}
    for row in record.clients:
        if row.split == "test" and row.users and (baselines or row.method not in BASELINES):
            by_client.setdefault(row.client, {})[row.method] = row
    named = record.config.get("federation.partition") == "column"
    if len(by_client) < 2 or (len(by_client) > FEW and not named):
        return None
    found = {client: rows for client, rows in by_client.items() if main in rows}
    known = list(dict.fromkeys(m for rows in found.values() for m in rows if m != main))
    models, plain = ([m for m in known if (m in BASELINES) == which] for which in (False, True))
    title = labels_of(main).outcome_column
    outcome = [title] if title and any(rows[main].shipped for rows in found.values()) else []
    columns = [*models, *outcome, *plain]
    largest_first = sorted(found, key=lambda client: -found[client][main].users)
    return ClientTable(
        titles=["client", "users", "HR@10", "NDCG@10", *columns],
        rows=[_row(client, found[client], main, columns) for client in largest_first],
        note=NOTE.format(main=main),
    )


def _row(
    client: str, rows: Mapping[str, ClientResult], main: str, columns: Sequence[str]
) -> list[str]:
    own, title = rows[main], labels_of(main).outcome_column
    figures = [_mean(own.hr, own.users), _mean(own.ndcg, own.users)]
    rest = [own.shipped if name == title else _ndcg(rows.get(name)) for name in columns]
    return [client, f"{own.users:g}", *figures, *rest]


def _ndcg(row: ClientResult | None) -> str:
    return "–" if row is None else _mean(row.ndcg, row.users)


def _mean(total: float, users: float) -> str:
    return f"{total / users:.3f}".removeprefix("0")
