"""How a metric is spread: over clients, and over groups of users or clients.

A mean hides the clients that a federation serves badly; the mean of the worst tenth shows them (as
in Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020). Groups are reported as
mergeable sums, to be divided by `ranking.means`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfsr_core.evaluation.client import ClientEvaluation, no_users
from pfsr_core.evaluation.ranking import merge

HISTORY_BOUNDS = (10, 20, 50, 100)
SIZE_BOUNDS = (2, 10, 50, 200)


@dataclass(frozen=True)
class Distribution:
    """A metric over ``clients`` clients, each counting once whatever its number of users.

    ``std`` is the population standard deviation, ``worst_decile`` the mean of the worst tenth of
    the clients (rounded up). All are 0 when there is no client.
    """

    clients: int
    mean: float
    std: float
    min: float
    worst_decile: float
    median: float
    max: float


def distribution(
    metric_sums: NDArray[np.float64], user_counts: NDArray[np.float64]
) -> Distribution:
    """Spread of the per-client means ``metric_sums / counts``, both (C,).

    Clients without users have no mean and are left out.
    """
    if metric_sums.shape != user_counts.shape or metric_sums.ndim != 1:
        raise ValueError(
            f"expected two arrays (C,), got {metric_sums.shape} and {user_counts.shape}"
        )
    has_users = user_counts > 0
    client_means = np.sort(metric_sums[has_users] / user_counts[has_users])
    if not len(client_means):
        return Distribution(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Distribution(
        clients=len(client_means),
        mean=float(client_means.mean()),
        std=float(client_means.std()),
        min=float(client_means[0]),
        worst_decile=float(client_means[: math.ceil(len(client_means) / 10)].mean()),
        median=float(np.median(client_means)),
        max=float(client_means[-1]),
    )


def by_history_length(
    evaluations: Sequence[ClientEvaluation], bounds: Sequence[int] = HISTORY_BOUNDS
) -> dict[str, dict[str, float]]:
    """Sums of the users grouped by the length of their history.

    ``bounds`` (10, 20) make the groups "<10", "10-19" and "20+"; every group is present, an empty
    one with zero sums.
    """
    group_labels = _group_labels(bounds)
    group_sums: dict[str, list[dict[str, float]]] = {
        group_label: [_empty_sums(evaluations)] for group_label in group_labels
    }
    for evaluation in evaluations:
        group_indices = np.searchsorted(bounds, evaluation.history_lengths, side="right")
        for group_index in np.unique(group_indices):
            group_sums[group_labels[group_index]].append(
                evaluation.select(group_indices == group_index).sums()
            )
    return {group_label: merge(*sums) for group_label, sums in group_sums.items()}


def by_client_size(
    evaluations: Sequence[ClientEvaluation], bounds: Sequence[int] = SIZE_BOUNDS
) -> dict[str, dict[str, float]]:
    """Sums of the users grouped by the number of users of their client; groups as above."""
    group_labels = _group_labels(bounds)
    group_sums: dict[str, list[dict[str, float]]] = {
        group_label: [_empty_sums(evaluations)] for group_label in group_labels
    }
    for evaluation in evaluations:
        group_label = group_labels[bisect_right(bounds, len(evaluation.users))]
        group_sums[group_label].append(evaluation.sums())
    return {group_label: merge(*sums) for group_label, sums in group_sums.items()}


def _group_labels(bounds: Sequence[int]) -> list[str]:
    if not bounds or any(
        lower_bound >= upper_bound
        for lower_bound, upper_bound in zip(bounds, bounds[1:], strict=False)
    ):
        raise ValueError(f"bounds must be increasing and at least one, got {tuple(bounds)}")
    middle_labels = [
        str(lower_bound) if upper_bound == lower_bound + 1 else f"{lower_bound}-{upper_bound - 1}"
        for lower_bound, upper_bound in zip(bounds, bounds[1:], strict=False)
    ]
    return [f"<{bounds[0]}", *middle_labels, f"{bounds[-1]}+"]


def _empty_sums(evaluations: Sequence[ClientEvaluation]) -> dict[str, float]:
    """The sums of no user: what makes an empty group report the keys that the others do."""
    any_evaluation = evaluations[0] if evaluations else no_users()
    return any_evaluation.select(np.zeros(len(any_evaluation.users), np.bool_)).sums()
