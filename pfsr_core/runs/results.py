"""From evaluations to the rows of a run's files: methods of the summary, clients of the table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pfsr_core.algorithms.fecosr import FEDERATED, LOCAL, SHIPPED
from pfsr_core.assembly.data import Federation
from pfsr_core.data.client_dataset import SPLITS, ClientDataset, HeldOut
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.batched import Evaluated
from pfsr_core.evaluation.client import ClientEvaluation, Scorer, client_sums
from pfsr_core.federated.algorithm import Broadcast, Sums
from pfsr_core.federated.evaluation import (
    ClientModels,
    ScorerOf,
    evaluate_clients,
    evaluate_full,
    evaluate_models,
    split_means,
)
from pfsr_core.runs.files import SELECTED_BY, best_line

Row = dict[str, Any]
Evaluations = Mapping[HeldOut, Sequence[ClientEvaluation]]


def evaluate_splits(scorer_of: ScorerOf, federation: Federation) -> Evaluations:
    """Validation and test of every client."""
    return {split: evaluate_clients(scorer_of, federation.clients, split) for split in SPLITS}


def evaluate_personal(models: ClientModels, federation: Federation) -> Evaluations:
    """Validation and test of every client with its personalised model, and with every view."""
    return _by_split(evaluate_models(models, federation.clients))


def evaluate_trained_on(
    models: ClientModels, broadcast: Broadcast, federation: Federation
) -> Evaluations:
    """Validation and test of every client in the view FULL."""
    return _by_split(evaluate_full(models, broadcast, federation.clients))


def _by_split(found: Sequence[Evaluated]) -> Evaluations:
    return {split: [one[split] for one in found] for split in SPLITS}


def coverage(federation: Federation) -> dict[str, float]:
    """Share of the held-out items that occur in the training data of their own client."""
    users = sum(len(data.users) for data in federation.clients)
    return {
        split: sum(data.target_coverage(split) for data in federation.clients) / users
        for split in SPLITS
    }


def baseline_rows(federation: Federation, pooled: bool = False) -> tuple[list[Row], list[Row]]:
    """Every baseline, fitted on each client alone: rows of the summary and of clients.csv.

    With ``pooled`` it is fitted once on the training histories of all; every client still ranks its
    own catalogue.
    """
    together = ClientDataset("", federation.split.users, federation.split.item_ids)
    methods: list[Row] = []
    clients: list[Row] = []
    for name, scorer_of in BASELINES.items():
        started = time.perf_counter()
        scorer = partial(given, scorer_of(together)) if pooled else scorer_of
        found = evaluate_splits(scorer, federation)
        means = split_means(found)
        row = {"method": name, "kind": "baseline", "rounds": 0, "best_round": 0}
        row |= {"bytes_down": 0, "bytes_up": 0, "seconds": time.perf_counter() - started}
        methods.append({**row, "best": means, "last": means, "finetuned": None})
        clients += client_rows(name, federation, found)
    return methods, clients


def given(scorer: Scorer, _data: ClientDataset) -> Scorer:
    """The same scorer for every client."""
    return scorer


def federated_row(
    name: str,
    lines: Sequence[Row],
    finetuned: Mapping[str, float] | None,
    views: Mapping[str, Mapping[str, float]],
    seconds: float,
    selected_by: str = SELECTED_BY,
) -> Row:
    """A method's entry in the summary, from its rounds, of which there is at least one.

    ``views``: of those that are looked at after the last round alone, the means.
    """
    best = best_line(lines, selected_by) or lines[-1]
    return {
        "method": name,
        "kind": "federated",
        "rounds": len(lines),
        "best_round": best["round"],
        "bytes_down": sum(line["bytes-down"] for line in lines),
        "bytes_up": sum(line["bytes-up"] for line in lines),
        "seconds": seconds,
        "best": _figures(best),
        "last": _figures(lines[-1]),
        "finetuned": finetuned,
        "views": views,
    }


def client_rows(
    method: str,
    federation: Federation,
    found: Evaluations,
    outcomes: Mapping[str, Sums] | None = None,
) -> list[Row]:
    """The rows of clients.csv for one method and its views; ``outcomes`` by client."""
    rows = []
    for split, evaluations in found.items():
        for data, one in zip(federation.clients, evaluations, strict=True):
            facts = data.num_interactions, split
            shipped = _shipped((outcomes or {}).get(data.client, {}))
            rows.append({**_client_row(method, *facts, one), "shipped": shipped})
            rows += [_client_row(f"{method}: {w}", *facts, other) for w, other in one.ways.items()]
    return rows


def _shipped(outcome: Sums) -> str:
    """What the rule of FeCoSR decided, "" where none was asked."""
    return {1.0: FEDERATED, 0.0: LOCAL}.get(outcome.get(SHIPPED, -1.0), "")


def _client_row(method: str, interactions: int, split: str, one: ClientEvaluation) -> Row:
    hits, users = client_sums([one], "hr@10")
    gains, _ = client_sums([one], "ndcg@10")
    return {
        "method": method,
        "client": one.client,
        "users": int(users[0]),
        "interactions": interactions,
        "split": split,
        "hr@10_sum": float(hits[0]),
        "ndcg@10_sum": float(gains[0]),
        "covered": int(one.covered.sum()),
    }


def _figures(line: Row) -> dict[str, float]:
    return {key: value for key, value in line.items() if key.startswith(("valid/", "test/"))}
