"""The figures of a finished run: ``summary.json``, ``clients.csv`` and ``baselines.json``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.protocol import BASELINES, ProtocolError
from pfsr_core.runs.files import write_clients
from server_app.checkpoints import Progress
from server_app.final_round import Finish
from server_app.messaging import exchange, request
from server_app.replies import client_rows, evaluation_means, evaluation_sums, read_baselines
from server_app.roster import ClientFacts, Roster
from server_app.run_log import RunLog, logger

Json = dict[str, Any]
BASELINE_ROWS = "baseline-clients.json"


def federated_result(name: str, progress: Progress, finish: Finish, *, serves_best: bool) -> Json:
    """One entry of the summary's methods."""
    best = progress.best or {"round": progress.server.round, "metrics": finish.last}
    return {
        "method": name,
        "kind": "federated",
        "rounds": progress.server.round,
        "best_round": best["round"],
        "served_round": best["round"] if serves_best else progress.server.round,
        "bytes_down": progress.bytes_down,
        "bytes_up": progress.bytes_up,
        "seconds": round(progress.seconds, 3),
        "best": dict(best["metrics"]),
        "last": dict(finish.last),
        "finetuned": dict(finish.finetuned) if finish.finetuned is not None else None,
        "views": {way: dict(means) for way, means in finish.views.items()},
        "outcome": dict(finish.outcome),
        "dropped_at_finish": list(finish.dropped),
    }


def ask_baselines(grid: Grid, log: RunLog, roster: Roster, timeout: float) -> None:
    """Writes ``baselines.json`` and the rows of each client; once in a run."""
    if log.read("baselines.json") is not None:
        return
    logger.info("baselines on every client ...")
    contents = {member.node: request({}) for member in roster.members}
    result = exchange(grid, BASELINES, contents, timeout=timeout)
    found: list[Mapping[str, Any]] = []
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
        found.append(metrics)
    log.write(BASELINE_ROWS, rows)
    log.write("baselines.json", _baseline_means(found))


def baseline_results(means: Mapping[str, Mapping[str, float]]) -> list[Json]:
    """The baselines as entries of the summary's methods."""
    return [
        {
            "method": name,
            "kind": "baseline",
            "rounds": 0,
            "best_round": 0,
            "bytes_down": 0,
            "bytes_up": 0,
            "seconds": None,
            "best": dict(values),
            "last": dict(values),
            "finetuned": None,
        }
        for name, values in means.items()
    ]


def write_summary(
    log: RunLog,
    roster: Roster,
    protocol: str,
    results: Mapping[str, Mapping[str, Any]],
    seconds: float,
) -> None:
    """Of a split by ``protocol``.

    ``results``: the file of each algorithm, its entry under "entry", its clients' "rows".
    """
    baselines = log.read("baselines.json") or {}
    entries = [result["entry"] for result in results.values()]
    log.write(
        "summary.json",
        {
            "run": log.run_id,
            "split": roster.split_digest,
            "protocol": protocol,
            "users": roster.users,
            "clients": len(roster.clients),
            "coverage": {split: roster.coverage(split) for split in SPLITS},
            "seconds": round(seconds, 3),
            "methods": [*entries, *baseline_results(baselines)],
        },
    )
    rows = [
        _csv_row(name, row, roster.facts)
        for name, result in results.items()
        for row in result["rows"]
    ]
    for row in log.read(BASELINE_ROWS) or []:
        rows.append(_csv_row(row["method"], row, roster.facts))
    write_clients(log.path("clients.csv"), rows)


def _names(metrics: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name in metrics))


def _baseline_means(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    names = _names(found[0]) if found else []
    return {
        name: evaluation_means([evaluation_sums(metrics, f"{name}/") for metrics in found])
        for name in names
    }


def _baseline_rows(metrics: Mapping[str, Any], clients: Sequence[str]) -> Iterator[Json]:
    for name in _names(metrics):
        for row in client_rows(metrics, f"{name}/", clients):
            yield {"method": name, **row}


def _csv_row(method: str, row: Mapping[str, Any], facts: Mapping[str, ClientFacts]) -> Json:
    client = row["client"]
    return {
        "method": f"{method}: {row['way']}" if row["way"] else method,
        "client": client,
        "users": int(row["users"]),
        "interactions": facts[client].interactions,
        "split": row["split"],
        "hr@10_sum": row["excluded/hr@10"],
        "ndcg@10_sum": row["excluded/ndcg@10"],
        "covered": int(row["covered"]),
    }
