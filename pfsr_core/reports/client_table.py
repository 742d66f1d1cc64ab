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
    main_method = main_algorithm(record)
    by_client: dict[str, dict[str, ClientResult]] = {}
    for client_result in record.clients:
        if (
            client_result.split == "test"
            and client_result.users
            and (baselines or client_result.method not in BASELINES)
        ):
            by_client.setdefault(client_result.client, {})[client_result.method] = client_result
    has_named_clients = record.config.get("federation.partition") == "column"
    if len(by_client) < 2 or (len(by_client) > MAX_UNNAMED and not has_named_clients):
        return None
    with_main = {
        client_name: method_results
        for client_name, method_results in by_client.items()
        if main_method in method_results
    }
    other_methods = list(
        dict.fromkeys(
            method_name
            for method_results in with_main.values()
            for method_name in method_results
            if method_name != main_method
        )
    )
    model_columns, baseline_columns = (
        [method_name for method_name in other_methods if (method_name in BASELINES) == is_baseline]
        for is_baseline in (False, True)
    )
    outcome_title = labels_of(main_method).outcome_column
    outcome_columns = (
        [outcome_title]
        if outcome_title
        and any(client_results[main_method].shipped for client_results in with_main.values())
        else []
    )
    method_columns = [*model_columns, *outcome_columns, *baseline_columns]
    largest_first = sorted(
        with_main, key=lambda client_name: -with_main[client_name][main_method].users
    )
    return ClientTable(
        titles=[
            "client",
            "users",
            *(metric.title for metric in headline_metrics()),
            *method_columns,
        ],
        rows=[
            _row(client_name, with_main[client_name], main_method, method_columns)
            for client_name in largest_first
        ],
        note=_note(main_method),
    )


def _row(
    client_name: str,
    method_results: Mapping[str, ClientResult],
    main_method: str,
    method_columns: Sequence[str],
) -> list[str]:
    main_result, outcome_title = method_results[main_method], labels_of(main_method).outcome_column
    main_cells = [_mean(main_result, metric.name) for metric in headline_metrics()]
    other_cells = [
        main_result.shipped
        if column_name == outcome_title
        else _mean(method_results.get(column_name), SELECTION_METRIC)
        for column_name in method_columns
    ]
    return [client_name, f"{main_result.users:g}", *main_cells, *other_cells]


def _mean(client_result: ClientResult | None, metric_name: str) -> str:
    if client_result is None or metric_name not in client_result.sums:
        return UNKNOWN
    return share(client_result.mean(metric_name))


def _note(main_method: str) -> str:
    metric_titles = [metric.title for metric in headline_metrics()]
    main_metrics = " and ".join(
        [", ".join(metric_titles[:-1]), metric_titles[-1]] if metric_titles[:-1] else metric_titles
    )
    other_metric = metric_named(SELECTION_METRIC).title
    return (
        f"Test items, seen items filtered; {main_metrics} of {main_method}, {other_metric} of the "
        f"others."
    )
