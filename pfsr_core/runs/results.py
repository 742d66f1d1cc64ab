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
from pfsr_core.runs.files import Json

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
    algorithm_name: str,
    round_: int,
    reply: Reply,
    *,
    participation: Participation,
    traffic: Traffic,
    cost: Cost,
) -> Json:
    """A round's line, without the figures of the evaluation: see :func:`with_metrics`.

    Args:
        algorithm_name: Name of the algorithm.
        round_: The round, from 1 on.
        reply: The mean of the replies.
        participation: Who took part.
        traffic: Bytes of the round.
        cost: Time and memory of the round.
    """
    metric_sums = reply.metrics
    num_targets = metric_sums.get("train-targets", 0.0)
    num_clients = metric_sums.get("clients", 0.0)
    ratio_sums = {
        sum_key.removeprefix(MASK_RATIO): sum_value
        for sum_key, sum_value in metric_sums.items()
        if sum_key.startswith(MASK_RATIO)
    }
    return {
        "algorithm": algorithm_name,
        "round": round_,
        "seconds": round(cost.seconds, 3),
        "train-loss": metric_sums["train-loss"] / num_targets if num_targets else None,
        "asked": participation.asked,
        "answered": participation.answered,
        "dropped": list(participation.dropped),
        "abandoned": participation.abandoned,
        "bytes-down": traffic.down,
        "bytes-up": traffic.up,
        "mask-ratio": {
            tensor_name: ratio_sum / num_clients
            for tensor_name, ratio_sum in ratio_sums.items()
            if num_clients
        },
        "norm-median": median(reply.norms),
        "node-seconds": round(cost.node_seconds, 3),
        "peak-memory": round(cost.peak_memory, 1),
    }


def with_metrics(round_entry: Mapping[str, Any], metric_means: Means | None) -> Json:
    """A round's line completed with the evaluation of the model after it."""
    return {**round_entry, **(metric_means or {})}


def progress_texts(round_entry: Mapping[str, Any], num_rounds: int) -> tuple[list[str], list[str]]:
    """What a person who waits reads of a round: where it stands and its loss; its figures."""
    position_texts = [f"{round_entry['algorithm']}  round {round_entry['round']}/{num_rounds}"]
    if round_entry.get("train-loss") is not None:
        position_texts.append(f"loss {round_entry['train-loss']:.3f}")
    metric_texts = [
        f"{metric.title} {round_entry[metric_key]:.4f}"
        for metric in headline_metrics()
        if round_entry.get(metric_key := f"valid/{FILTERED}/{metric.name}") is not None
    ]
    if metric_texts:
        metric_texts[0] = f"valid {metric_texts[0]}"
    return position_texts, metric_texts


def metrics_of(round_entry: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the evaluation out of a round's line."""
    return {
        metric_key: metric_value
        for metric_key, metric_value in round_entry.items()
        if metric_key.startswith(tuple(f"{split}/" for split in SPLITS))
    }


def method_entry(
    method_name: str,
    figures: Figures,
    *,
    num_rounds: int,
    served_round: int,
    outcome: Sums,
    traffic: Traffic,
    seconds: float,
    dropped_at_finish: Sequence[Mapping[str, Any]] = (),
) -> Json:
    """A federated algorithm in the summary.

    Args:
        method_name: Its name.
        figures: Its figures.
        num_rounds: Number of rounds.
        served_round: The round of the model that is served.
        outcome: Sums of the algorithm's outcome over the clients.
        traffic: Bytes of all rounds.
        seconds: Wall time.
        dropped_at_finish: Nodes whose last answer was left out, with the reason.
    """
    return {
        "method": method_name,
        "kind": "federated",
        "rounds": num_rounds,
        "best_round": figures.best["round"],
        "served_round": served_round,
        "bytes_down": traffic.down,
        "bytes_up": traffic.up,
        "seconds": round(seconds, 3),
        "best": dict(figures.best["metrics"]),
        "last": dict(figures.last),
        "finetuned": None if figures.finetuned is None else dict(figures.finetuned),
        "variants": {variant_name: dict(means) for variant_name, means in figures.variants.items()},
        "outcome": dict(outcome),
        "dropped_at_finish": list(dropped_at_finish),
    }


def baseline_entry(baseline_name: str, metric_means: Means, seconds: float | None = None) -> Json:
    """A baseline in the summary; ``seconds`` to fit and evaluate it, where they were taken."""
    return {
        "method": baseline_name,
        "kind": "baseline",
        "rounds": 0,
        "best_round": 0,
        "bytes_down": 0,
        "bytes_up": 0,
        "seconds": seconds,
        "best": dict(metric_means),
        "last": dict(metric_means),
        "finetuned": None,
    }


def run_summary(
    identity: Identity,
    *,
    coverage: Means,
    seconds: float,
    method_entries: Sequence[Mapping[str, Any]],
) -> Json:
    """summary.json; ``coverage``: share of the held-out items that their client trained."""
    return {
        **identity._asdict(),
        "coverage": dict(coverage),
        "seconds": round(seconds, 3),
        "methods": list(method_entries),
    }


def client_row(
    method_name: str,
    metric_sums: Mapping[str, float],
    *,
    client: str,
    interactions: int,
    split: str,
    variant_name: str = "",
    shipped_model: str = "",
) -> Json:
    """A client's row for one method.

    Args:
        method_name: Name of the method.
        metric_sums: Its sums over the client's users: those of the headline metrics with seen items
            filtered, "users" and "covered".
        client: Name of the client.
        interactions: Its training interactions.
        split: "valid" or "test".
        variant_name: The model variant, "" for the model that the client recommends with.
        shipped_model: Which model a rule chose for the client, where it may be reported.
    """
    metric_totals = {
        f"{metric.name}_sum": metric_sums[f"{FILTERED}/{metric.name}"]
        for metric in headline_metrics()
    }
    return {
        "method": f"{method_name}: {variant_name}" if variant_name else method_name,
        "client": client,
        "users": int(metric_sums["users"]),
        "interactions": interactions,
        "split": split,
        **metric_totals,
        "covered": int(metric_sums["covered"]),
        **({"shipped": shipped_model} if shipped_model else {}),
    }


def client_columns() -> tuple[str, ...]:
    """The columns of clients.csv."""
    total_columns = (f"{metric.name}_sum" for metric in headline_metrics())
    return (
        "method",
        "client",
        "users",
        "interactions",
        "split",
        *total_columns,
        "covered",
        "shipped",
    )


def write_clients(csv_path: Path, client_rows: Sequence[Mapping[str, object]]) -> None:
    """clients.csv; what a row lacks stays empty."""
    with csv_path.open("w", encoding="utf-8", newline="") as csv_file:
        writer = csv.DictWriter(csv_file, client_columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(client_rows)
