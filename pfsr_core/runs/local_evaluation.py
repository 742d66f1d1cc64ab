"""Evaluation of a run without a network, and what its files say of each method and client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.assembly.registries import labels_of
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
from pfsr_core.runs.files import Json
from pfsr_core.runs.results import baseline_entry, client_row

Evaluations = Mapping[HeldOut, Sequence[ClientEvaluation]]


def evaluate_splits(scorer_of: ScorerOf, federation: FederatedDataset) -> Evaluations:
    """Validation and test of every client."""
    return {split: evaluate_clients(scorer_of, federation.clients, split) for split in SPLITS}


def evaluate_personal(client_models: ClientModels, federation: FederatedDataset) -> Evaluations:
    """Validation and test of every client with its personalised model, and with every variant."""
    return _by_split(evaluate_models(client_models, federation.clients))


def evaluate_trained_on(
    client_models: ClientModels, broadcast: Broadcast, federation: FederatedDataset
) -> Evaluations:
    """Validation and test of every client of the variant FULL."""
    return _by_split(evaluate_full(client_models, broadcast, federation.clients))


def _by_split(evaluated_clients: Sequence[Evaluated]) -> Evaluations:
    return {
        split: [evaluated_client[split] for evaluated_client in evaluated_clients]
        for split in SPLITS
    }


def coverage(federation: FederatedDataset) -> dict[str, float]:
    """Share of the held-out items that occur in the training data of their own client."""
    num_users = sum(len(client_data.users) for client_data in federation.clients)
    return {
        split: sum(client_data.target_coverage(split) for client_data in federation.clients)
        / num_users
        for split in SPLITS
    }


def evaluate_baselines(
    federation: FederatedDataset, pooled: bool = False
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
    baseline_entries: list[Json] = []
    client_rows: list[Json] = []
    for baseline_name, scorer_of in BASELINES.items():
        started_at = time.perf_counter()
        client_scorer = partial(given, scorer_of(all_users)) if pooled else scorer_of
        client_evaluations = evaluate_splits(client_scorer, federation)
        metric_means = split_means(client_evaluations)
        baseline_entries.append(
            baseline_entry(baseline_name, metric_means, time.perf_counter() - started_at)
        )
        client_rows += client_result_rows(baseline_name, federation, client_evaluations)
    return baseline_entries, client_rows


def given(scorer: Scorer, _data: ClientDataset) -> Scorer:
    """The same scorer for every client."""
    return scorer


def client_result_rows(
    method_name: str,
    federation: FederatedDataset,
    client_evaluations: Evaluations,
    client_outcomes: Mapping[str, Sums] | None = None,
) -> list[Json]:
    """The rows of clients.csv for one method and its variants; ``client_outcomes`` by client."""
    result_rows = []
    for split, of_split in client_evaluations.items():
        for client_data, evaluation in zip(federation.clients, of_split, strict=True):
            shipped_model = labels_of(method_name).outcome(
                (client_outcomes or {}).get(client_data.client, {})
            )
            client_facts: dict[str, Any] = {
                "client": client_data.client,
                "interactions": client_data.num_interactions,
                "split": split,
            }
            result_rows.append(
                client_row(
                    method_name, evaluation.sums(), **client_facts, shipped_model=shipped_model
                )
            )
            result_rows += [
                client_row(
                    method_name, of_variant.sums(), **client_facts, variant_name=variant_name
                )
                for variant_name, of_variant in evaluation.variants.items()
            ]
    return result_rows
