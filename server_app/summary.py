"""The figures of a finished run: ``summary.json``, ``clients.csv`` and ``baselines.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.protocol import BASELINES, ProtocolError
from pfsr_core.runs.files import Json
from pfsr_core.runs.results import (
    Figures,
    Identity,
    Traffic,
    baseline_entry,
    client_row,
    method_entry,
    run_summary,
    write_clients,
)
from server_app.checkpoints import Progress
from server_app.final_round import Finish
from server_app.messaging import exchange, request
from server_app.replies import (
    client_result_rows,
    content_of,
    evaluation_means,
    evaluation_sums,
    read_baselines,
)
from server_app.roster import ClientFacts, Roster
from server_app.run_log import RunLog, logger

BASELINE_ROWS = "baseline-clients.json"


def federated_result(
    method_name: str, progress: Progress, final_figures: Finish, *, serves_best: bool
) -> Json:
    """The entry of an algorithm in the summary."""
    best_round = progress.best or {"round": progress.server.round, "metrics": final_figures.last}
    return method_entry(
        method_name,
        Figures(best_round, final_figures.last, final_figures.finetuned, final_figures.variants),
        num_rounds=progress.server.round,
        served_round=best_round["round"] if serves_best else progress.server.round,
        outcome=final_figures.outcome,
        traffic=Traffic(progress.bytes_down, progress.bytes_up),
        seconds=progress.seconds,
        dropped_at_finish=final_figures.dropped,
    )


def ask_baselines(grid: Grid, run_log: RunLog, roster: Roster, round_timeout: float) -> None:
    """Writes ``baselines.json`` and the rows of each client; once in a run."""
    if run_log.read("baselines.json") is not None:
        return
    logger.info("baselines on every client ...")
    node_contents = {member.node: request({}) for member in roster.members}
    baseline_exchange = exchange(grid, BASELINES, node_contents, timeout_seconds=round_timeout)
    node_metrics: list[Mapping[str, Any]] = []
    baseline_rows: list[Json] = []
    for member in roster.members:
        client_names = list(member.clients)
        try:
            baseline_content = content_of(baseline_exchange, member.node)
            baseline_metrics = read_baselines(baseline_content, len(client_names))
            baseline_rows += _baseline_rows(baseline_metrics, client_names)
        except ProtocolError as error:
            logger.info(f"no baselines from node {member.label}: {error}")
            continue
        node_metrics.append(baseline_metrics)
    run_log.write(BASELINE_ROWS, baseline_rows)
    run_log.write("baselines.json", _baseline_means(node_metrics))


def write_summary(
    run_log: RunLog,
    roster: Roster,
    protocol: str,
    algorithm_results: Mapping[str, Mapping[str, Any]],
    run_seconds: float,
) -> None:
    """Writes summary.json and clients.csv.

    Args:
        run_log: The run's directory.
        roster: Its nodes and clients.
        protocol: The evaluation protocol.
        algorithm_results: By algorithm, its entry under "entry", its clients' sums under "rows".
        run_seconds: Wall time of the run.
    """
    baseline_means = run_log.read("baselines.json") or {}
    summary = run_summary(
        Identity(run_log.run_id, roster.split_digest, protocol, roster.users, len(roster.clients)),
        coverage={split_name: roster.coverage(split_name) for split_name in SPLITS},
        seconds=run_seconds,
        method_entries=[
            *(algorithm_result["entry"] for algorithm_result in algorithm_results.values()),
            *(
                baseline_entry(method_name, mean_metrics)
                for method_name, mean_metrics in baseline_means.items()
            ),
        ],
    )
    run_log.write("summary.json", summary)
    method_rows = [
        (method_name, client_sums)
        for method_name, algorithm_result in algorithm_results.items()
        for client_sums in algorithm_result["rows"]
    ]
    method_rows += [
        (client_sums["method"], client_sums) for client_sums in run_log.read(BASELINE_ROWS) or []
    ]
    write_clients(
        run_log.path("clients.csv"),
        [
            _client_row(method_name, client_sums, roster.facts)
            for method_name, client_sums in method_rows
        ],
    )


def _baseline_names(baseline_metrics: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(metric_name.partition("/")[0] for metric_name in baseline_metrics))


def _baseline_means(node_metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    baseline_names = _baseline_names(node_metrics[0]) if node_metrics else []
    return {
        baseline_name: evaluation_means(
            [
                evaluation_sums(baseline_metrics, f"{baseline_name}/")
                for baseline_metrics in node_metrics
            ]
        )
        for baseline_name in baseline_names
    }


def _baseline_rows(
    baseline_metrics: Mapping[str, Any], client_names: Sequence[str]
) -> Iterator[Json]:
    for baseline_name in _baseline_names(baseline_metrics):
        for result_row in client_result_rows(baseline_metrics, f"{baseline_name}/", client_names):
            yield {"method": baseline_name, **result_row}


def _client_row(
    method_name: str, client_sums: Mapping[str, Any], client_facts: Mapping[str, ClientFacts]
) -> Json:
    client_name = client_sums["client"]
    return client_row(
        method_name,
        client_sums,
        client=client_name,
        interactions=client_facts[client_name].interactions,
        split=client_sums["split"],
        variant_name=client_sums["variant"],
    )
