"""What each client reached with each method, as a table of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pfsr_core.assembly.registries import labels_of
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.metrics.registry import (
    SELECTION_METRIC,
    headline_metrics,
    metric_named,
)
from pfsr_core.reports.columns import UNKNOWN, share
from pfsr_core.reports.queries import main_algorithm
from pfsr_core.runs.files import ClientResult, RunRecord

MAX_UNNAMED = 10  # clients up to which each has a row, whatever their names mean


@dataclass(frozen=True)
class ClientTable:
    """A table of clients.

    Attributes:
        titles: The headings.
        rows: The cells, the client with the most users first.
        note: What the figures are.
    """

    titles: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def client_table(record: RunRecord, baselines: bool) -> ClientTable | None:
    """What each client reached with each method, and how the main one ended where it says so.

    Args:
        record: The run.
        baselines: Whether baselines have columns too.

    Returns:
        None where there is one client, or more than MAX_UNNAMED that are no values of a column.
    """
    main = main_algorithm(record)
    by_client: dict[str, dict[str, ClientResult]] = {}
    for row in record.clients:
        if row.split == "test" and row.users and (baselines or row.method not in BASELINES):
            by_client.setdefault(row.client, {})[row.method] = row
    named = record.config.get("federation.partition") == "column"
    if len(by_client) < 2 or (len(by_client) > MAX_UNNAMED and not named):
        return None
    with_main = {client: rows for client, rows in by_client.items() if main in rows}
    others = list(dict.fromkeys(m for rows in with_main.values() for m in rows if m != main))
    models, plain = ([m for m in others if (m in BASELINES) == which] for which in (False, True))
    title = labels_of(main).outcome_column
    outcome = [title] if title and any(r[main].shipped for r in with_main.values()) else []
    columns = [*models, *outcome, *plain]
    largest_first = sorted(with_main, key=lambda client: -with_main[client][main].users)
    return ClientTable(
        titles=["client", "users", *(metric.title for metric in headline_metrics()), *columns],
        rows=[_row(client, with_main[client], main, columns) for client in largest_first],
        note=_note(main),
    )


def _row(
    client: str, rows: Mapping[str, ClientResult], main: str, columns: Sequence[str]
) -> list[str]:
    own, title = rows[main], labels_of(main).outcome_column
    figures = [_mean(own, metric.name) for metric in headline_metrics()]
    rest = [
        own.shipped if name == title else _mean(rows.get(name), SELECTION_METRIC)
        for name in columns
    ]
    return [client, f"{own.users:g}", *figures, *rest]


def _mean(row: ClientResult | None, metric: str) -> str:
    return UNKNOWN if row is None or metric not in row.sums else share(row.mean(metric))


def _note(main: str) -> str:
    titles = [metric.title for metric in headline_metrics()]
    own = " and ".join([", ".join(titles[:-1]), titles[-1]] if titles[:-1] else titles)
    others = metric_named(SELECTION_METRIC).title
    return f"Test items, seen items filtered; {own} of {main}, {others} of the others."
