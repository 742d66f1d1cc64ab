"""The record formats of a run, each built here alone.

The run without a network (:mod:`pfsr_core.runs.local`) and the server of a Flower run write the
same records, which :mod:`pfsr_core.runs.reading` reads again::

    round_line       one line of metrics.jsonl
    method_entry     a federated algorithm among the methods of summary.json
    baseline_entry   a baseline among them
    run_summary      summary.json
    client_row       one row of clients.csv

Figures are named as :mod:`pfsr_core.evaluation.metrics.registry` says. Bytes count parameters and
messages in both directions, seconds are wall time.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.evaluation.metrics.registry import FILTERED, headline_metrics
from pfsr_core.federated.algorithm import Reply, Sums

Json = dict[str, Any]
Means = Mapping[str, float]

MASK_RATIO = "mask-ratio/"
"""Prefix of the training sums of the share that a client's mask holds back, by tensor."""


class Traffic(NamedTuple):
    """Bytes that the server sent and received."""

    down: float
    up: float


class Cost(NamedTuple):
    """What a round took.

    Attributes:
        seconds: Of the whole round.
        node_seconds: Of the slowest node.
        peak_memory: MiB of the largest client process.
    """

    seconds: float
    node_seconds: float
    peak_memory: float


class Participation(NamedTuple):
    """Who took part in a round.

    Attributes:
        asked: Number of clients asked.
        answered: Number of clients whose update counts.
        dropped: Nodes that were left out, with the reason.
        abandoned: Attempts before this one in which too few clients answered.
    """

    asked: int
    answered: int
    dropped: Sequence[Mapping[str, Any]] = ()
    abandoned: int = 0


class Figures(NamedTuple):
    """The figures of a method.

    Attributes:
        best: The selected round: its number under "round", its figures under "metrics".
        last: After the last round.
        finetuned: After finetuning, None without it.
        variants: Of model variants that are evaluated after the last round alone, by name.
    """

    best: Mapping[str, Any]
    last: Means
    finetuned: Means | None
    variants: Mapping[str, Means]


class Identity(NamedTuple):
    """Which run a summary is of.

    Attributes:
        run: Its name.
        split: Digest of the split.
        protocol: The evaluation protocol.
        users: Number of evaluated users.
        clients: Number of clients.
    """

    run: str
    split: str
    protocol: str
    users: int
    clients: int


def round_line(
    algorithm: str,
    round_: int,
    reply: Reply,
    *,
    participation: Participation,
    traffic: Traffic,
    cost: Cost,
) -> Json:
    """A round's line, without the figures of the evaluation: see :func:`with_metrics`.

    Args:
        algorithm: Name of the algorithm.
        round_: The round, from 1 on.
        reply: The mean of the replies.
        participation: Who took part.
        traffic: Bytes of the round.
        cost: Time and memory of the round.
    """
    sums = reply.metrics
    targets, clients = sums.get("train-targets", 0.0), sums.get("clients", 0.0)
    ratios = {k.removeprefix(MASK_RATIO): v for k, v in sums.items() if k.startswith(MASK_RATIO)}
    return {
        "algorithm": algorithm,
        "round": round_,
        "seconds": round(cost.seconds, 3),
        "train-loss": sums["train-loss"] / targets if targets else None,
        "asked": participation.asked,
        "answered": participation.answered,
        "dropped": list(participation.dropped),
        "abandoned": participation.abandoned,
        "bytes-down": traffic.down,
        "bytes-up": traffic.up,
        "mask-ratio": {name: total / clients for name, total in ratios.items() if clients},
        "norm-median": median(reply.norms),
        "node-seconds": round(cost.node_seconds, 3),
        "peak-memory": round(cost.peak_memory, 1),
    }


def with_metrics(line: Mapping[str, Any], means: Means | None) -> Json:
    """A round's line completed with the evaluation of the model after it."""
    return {**line, **(means or {})}


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the evaluation out of a round's line."""
    return {k: v for k, v in line.items() if k.startswith(tuple(f"{split}/" for split in SPLITS))}


def method_entry(
    name: str,
    figures: Figures,
    *,
    rounds: int,
    served_round: int,
    outcome: Sums,
    traffic: Traffic,
    seconds: float,
    dropped_at_finish: Sequence[Mapping[str, Any]] = (),
) -> Json:
    """A federated algorithm in the summary.

    Args:
        name: Its name.
        figures: Its figures.
        rounds: Number of rounds.
        served_round: The round of the model that is served.
        outcome: Sums of the algorithm's outcome over the clients.
        traffic: Bytes of all rounds.
        seconds: Wall time.
        dropped_at_finish: Nodes whose last answer was left out, with the reason.
    """
    return {
        "method": name,
        "kind": "federated",
        "rounds": rounds,
        "best_round": figures.best["round"],
        "served_round": served_round,
        "bytes_down": traffic.down,
        "bytes_up": traffic.up,
        "seconds": round(seconds, 3),
        "best": dict(figures.best["metrics"]),
        "last": dict(figures.last),
        "finetuned": None if figures.finetuned is None else dict(figures.finetuned),
        "variants": {name: dict(means) for name, means in figures.variants.items()},
        "outcome": dict(outcome),
        "dropped_at_finish": list(dropped_at_finish),
    }


def baseline_entry(name: str, means: Means, seconds: float | None = None) -> Json:
    """A baseline in the summary; ``seconds`` to fit and evaluate it, where they were taken."""
    return {
        "method": name,
        "kind": "baseline",
        "rounds": 0,
        "best_round": 0,
        "bytes_down": 0,
        "bytes_up": 0,
        "seconds": seconds,
        "best": dict(means),
        "last": dict(means),
        "finetuned": None,
    }


def run_summary(
    identity: Identity, *, coverage: Means, seconds: float, methods: Sequence[Mapping[str, Any]]
) -> Json:
    """summary.json; ``coverage``: share of the held-out items that their client trained."""
    return {
        **identity._asdict(),
        "coverage": dict(coverage),
        "seconds": round(seconds, 3),
        "methods": list(methods),
    }


def client_row(
    method: str,
    sums: Mapping[str, float],
    *,
    client: str,
    interactions: int,
    split: str,
    variant: str = "",
    shipped: str = "",
) -> Json:
    """A client's row for one method.

    Args:
        method: Name of the method.
        sums: Its sums over the client's users: those of the headline metrics with seen items
            filtered, "users" and "covered".
        client: Name of the client.
        interactions: Its training interactions.
        split: "valid" or "test".
        variant: The model variant, "" for the model that the client recommends with.
        shipped: Which model a rule chose for the client, where it may be reported.
    """
    totals = {
        f"{metric.name}_sum": sums[f"{FILTERED}/{metric.name}"] for metric in headline_metrics()
    }
    return {
        "method": f"{method}: {variant}" if variant else method,
        "client": client,
        "users": int(sums["users"]),
        "interactions": interactions,
        "split": split,
        **totals,
        "covered": int(sums["covered"]),
        **({"shipped": shipped} if shipped else {}),
    }


def client_columns() -> tuple[str, ...]:
    """The columns of clients.csv."""
    totals = (f"{metric.name}_sum" for metric in headline_metrics())
    return ("method", "client", "users", "interactions", "split", *totals, "covered", "shipped")


def write_clients(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """clients.csv; what a row lacks stays empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, client_columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
