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


def distribution(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Distribution:
    """Spread of the per-client means ``sums / counts``, both (C,).

    Clients without users have no mean and are left out.
    """
    if sums.shape != counts.shape or sums.ndim != 1:
        raise ValueError(f"expected two arrays (C,), got {sums.shape} and {counts.shape}")
    present = counts > 0
    values = np.sort(sums[present] / counts[present])
    if not len(values):
        return Distribution(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Distribution(
        clients=len(values),
        mean=float(values.mean()),
        std=float(values.std()),
        min=float(values[0]),
        worst_decile=float(values[: math.ceil(len(values) / 10)].mean()),
        median=float(np.median(values)),
        max=float(values[-1]),
    )


def by_history_length(
    evaluations: Sequence[ClientEvaluation], bounds: Sequence[int] = HISTORY_BOUNDS
) -> dict[str, dict[str, float]]:
    """Sums of the users grouped by the length of their history.

    ``bounds`` (10, 20) make the groups "<10", "10-19" and "20+"; every group is present, an empty
    one with zero sums.
    """
    labels = _labels(bounds)
    groups: dict[str, list[dict[str, float]]] = {label: [_nobody(evaluations)] for label in labels}
    for evaluation in evaluations:
        bucket = np.searchsorted(bounds, evaluation.history_lengths, side="right")
        for index in np.unique(bucket):
            groups[labels[index]].append(evaluation.select(bucket == index).sums())
    return {label: merge(*sums) for label, sums in groups.items()}


def by_client_size(
    evaluations: Sequence[ClientEvaluation], bounds: Sequence[int] = SIZE_BOUNDS
) -> dict[str, dict[str, float]]:
    """Sums of the users grouped by the number of users of their client; groups as above."""
    labels = _labels(bounds)
    groups: dict[str, list[dict[str, float]]] = {label: [_nobody(evaluations)] for label in labels}
    for evaluation in evaluations:
        label = labels[bisect_right(bounds, len(evaluation.users))]
        groups[label].append(evaluation.sums())
    return {label: merge(*sums) for label, sums in groups.items()}


def _labels(bounds: Sequence[int]) -> list[str]:
    if not bounds or any(low >= high for low, high in zip(bounds, bounds[1:], strict=False)):
        raise ValueError(f"bounds must be increasing and at least one, got {tuple(bounds)}")
    between = [
        str(low) if high == low + 1 else f"{low}-{high - 1}"
        for low, high in zip(bounds, bounds[1:], strict=False)
    ]
    return [f"<{bounds[0]}", *between, f"{bounds[-1]}+"]


def _nobody(evaluations: Sequence[ClientEvaluation]) -> dict[str, float]:
    """The sums of no user: what makes an empty group report the keys that the others do."""
    like = evaluations[0] if evaluations else no_users()
    return like.select(np.zeros(len(like.users), np.bool_)).sums()
