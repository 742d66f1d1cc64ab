"""Evaluation of a run without a network, and what its files say of each method and client."""

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
from pfsr_core.evaluation.client import ClientEvaluation, Scorer
from pfsr_core.federated.algorithm import Broadcast, Sums
from pfsr_core.federated.evaluation import (
    ClientModels,
    ScorerOf,
    evaluate_clients,
    evaluate_full,
    evaluate_models,
    split_means,
)
from pfsr_core.runs.results import Json, baseline_entry, client_row

Evaluations = Mapping[HeldOut, Sequence[ClientEvaluation]]


def evaluate_splits(scorer_of: ScorerOf, federation: Federation) -> Evaluations:
    """Validation and test of every client."""
    return {split: evaluate_clients(scorer_of, federation.clients, split) for split in SPLITS}


def evaluate_personal(models: ClientModels, federation: Federation) -> Evaluations:
    """Validation and test of every client with its personalised model, and with every variant."""
    return _by_split(evaluate_models(models, federation.clients))


def evaluate_trained_on(
    models: ClientModels, broadcast: Broadcast, federation: Federation
) -> Evaluations:
    """Validation and test of every client of the variant FULL."""
    return _by_split(evaluate_full(models, broadcast, federation.clients))


def _by_split(evaluated: Sequence[Evaluated]) -> Evaluations:
    return {split: [one[split] for one in evaluated] for split in SPLITS}


def coverage(federation: Federation) -> dict[str, float]:
    """Share of the held-out items that occur in the training data of their own client."""
    users = sum(len(data.users) for data in federation.clients)
    return {
        split: sum(data.target_coverage(split) for data in federation.clients) / users
        for split in SPLITS
    }


def evaluate_baselines(
    federation: Federation, pooled: bool = False
) -> tuple[list[Json], list[Json]]:
    """Every baseline, fitted on each client alone.

    Args:
        federation: The clients.
        pooled: Fit each baseline once on the training histories of all clients instead; every
            client still ranks its own catalogue.

    Returns:
        The entries of the summary, and the rows of clients.csv.
    """
    all_users = ClientDataset("", federation.split.users, federation.split.item_ids)
    entries: list[Json] = []
    rows: list[Json] = []
    for name, scorer_of in BASELINES.items():
        started = time.perf_counter()
        scorer = partial(given, scorer_of(all_users)) if pooled else scorer_of
        evaluations = evaluate_splits(scorer, federation)
        means = split_means(evaluations)
        entries.append(baseline_entry(name, means, time.perf_counter() - started))
        rows += client_result_rows(name, federation, evaluations)
    return entries, rows


def given(scorer: Scorer, _data: ClientDataset) -> Scorer:
    """The same scorer for every client."""
    return scorer


def client_result_rows(
    method: str,
    federation: Federation,
    evaluations: Evaluations,
    outcomes: Mapping[str, Sums] | None = None,
) -> list[Json]:
    """The rows of clients.csv for one method and its variants; ``outcomes`` by client."""
    rows = []
    for split, of_split in evaluations.items():
        for data, evaluation in zip(federation.clients, of_split, strict=True):
            shipped = _shipped((outcomes or {}).get(data.client, {}))
            facts: dict[str, Any] = {
                "client": data.client,
                "interactions": data.num_interactions,
                "split": split,
            }
            rows.append(client_row(method, evaluation.sums(), **facts, shipped=shipped))
            rows += [
                client_row(method, of_variant.sums(), **facts, variant=variant)
                for variant, of_variant in evaluation.variants.items()
            ]
    return rows


def _shipped(outcome: Sums) -> str:
    """What the safety rule of FeCoSR decided, "" where there was none."""
    return {1.0: FEDERATED, 0.0: LOCAL}.get(outcome.get(SHIPPED, -1.0), "")
