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
from server_app.replies import client_rows, evaluation_means, evaluation_sums, read_baselines
from server_app.roster import ClientFacts, Roster
from server_app.run_log import RunLog, logger

BASELINE_ROWS = "baseline-clients.json"


def federated_result(name: str, progress: Progress, finish: Finish, *, serves_best: bool) -> Json:
    """The entry of an algorithm in the summary."""
    best = progress.best or {"round": progress.server.round, "metrics": finish.last}
    return method_entry(
        name,
        Figures(best, finish.last, finish.finetuned, finish.variants),
        num_rounds=progress.server.round,
        served_round=best["round"] if serves_best else progress.server.round,
        outcome=finish.outcome,
        traffic=Traffic(progress.bytes_down, progress.bytes_up),
        seconds=progress.seconds,
        dropped_at_finish=finish.dropped,
    )


def ask_baselines(grid: Grid, log: RunLog, roster: Roster, timeout: float) -> None:
    """Writes ``baselines.json`` and the rows of each client; once in a run."""
    if log.read("baselines.json") is not None:
        return
    logger.info("baselines on every client ...")
    contents = {member.node: request({}) for member in roster.members}
    result = exchange(grid, BASELINES, contents, timeout=timeout)
    answers: list[Mapping[str, Any]] = []
    rows: list[Json] = []
    for member in roster.members:
        names = list(member.clients)
        try:
            if member.node not in result.answers:
                raise ProtocolError(result.problems[member.node])
            metrics = read_baselines(result.answers[member.node], len(names))
            rows += _baseline_rows(metrics, names)
        except ProtocolError as error:
            logger.info(f"no baselines from node {member.label}: {error}")
            continue
        answers.append(metrics)
    log.write(BASELINE_ROWS, rows)
    log.write("baselines.json", _baseline_means(answers))


def write_summary(
    log: RunLog,
    roster: Roster,
    protocol: str,
    results: Mapping[str, Mapping[str, Any]],
    seconds: float,
) -> None:
    """Writes summary.json and clients.csv.

    Args:
        log: The run's directory.
        roster: Its nodes and clients.
        protocol: The evaluation protocol.
        results: Of each algorithm its entry under "entry" and its clients' sums under "rows".
        seconds: Wall time of the run.
    """
    baselines = log.read("baselines.json") or {}
    summary = run_summary(
        Identity(log.run_id, roster.split_digest, protocol, roster.users, len(roster.clients)),
        coverage={split: roster.coverage(split) for split in SPLITS},
        seconds=seconds,
        method_entries=[
            *(result["entry"] for result in results.values()),
            *(baseline_entry(name, means) for name, means in baselines.items()),
        ],
    )
    log.write("summary.json", summary)
    rows = [(name, row) for name, result in results.items() for row in result["rows"]]
    rows += [(row["method"], row) for row in log.read(BASELINE_ROWS) or []]
    write_clients(
        log.path("clients.csv"), [_client_row(name, row, roster.facts) for name, row in rows]
    )


def _baseline_names(metrics: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in metrics))


def _baseline_means(answers: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    names = _baseline_names(answers[0]) if answers else []
    return {
        name: evaluation_means([evaluation_sums(metrics, f"{name}/") for metrics in answers])
        for name in names
    }


def _baseline_rows(metrics: Mapping[str, Any], clients: Sequence[str]) -> Iterator[Json]:
    for name in _baseline_names(metrics):
        for row in client_rows(metrics, f"{name}/", clients):
            yield {"method": name, **row}


def _client_row(method: str, row: Mapping[str, Any], facts: Mapping[str, ClientFacts]) -> Json:
    client = row["client"]
    return client_row(
        method,
        row,
        client=client,
        interactions=facts[client].interactions,
        split=row["split"],
        variant_name=row["variant"],
    )
