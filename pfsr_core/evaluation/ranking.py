"""The rank of one held-out item per user in the full catalogue, and metrics as mergeable sums.

The metrics are in :mod:`pfsr_core.evaluation.metrics`. A node answers with sums and the number of
users, so that merging nodes is exact; only :func:`means` divides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.evaluation.metrics import registry
from pfsr_core.evaluation.metrics.registry import OF_CLIENTS, metric_named

Ranks = Tensor | NDArray[np.int64]
ItemCodes = NDArray[np.int64]

_DIVERGED = "the model has diverged. Fix: lower train.learning-rate and the step sizes beside it."


class DivergedError(ValueError):
    """Scores that are not numbers: nothing can be ranked by them."""


def ranks(scores: Tensor, targets: Tensor, excluded: Tensor) -> Tensor:
    """1-based rank of every user's target in the full catalogue: (U,) int64.

    ``scores`` (U, V+1) holds one column per item code, ``targets`` (U,) the held-out codes and
    ``excluded`` (U, V+1) is True where an item does not compete. Column 0, the padding, never
    competes and the target always does, even when it is excluded. A tie counts against the
    target, so a constant score, or minus infinity, ranks it last.

    Raises ValueError on shapes that disagree, on a target outside 1..V and its subclass
    DivergedError on NaN scores.
    """
    _check_shapes(scores, targets, excluded)
    _check_values(scores, targets)
    target_column = targets.unsqueeze(1)
    candidates = ~excluded
    candidates[:, 0] = False
    candidates.scatter_(1, target_column, True)
    # The target is as good as itself: counting it is what makes the rank 1-based.
    as_good = scores >= scores.gather(1, target_column)
    return (as_good & candidates).sum(1)


def rank_among(
    scores: NDArray[np.float32], items: ItemCodes, target: int, history: ItemCodes, size: int
) -> tuple[int, int]:
    """:func:`ranks` of one user without and with the items of the history, in O(candidates).

    ``scores`` (V',) of the sorted codes ``items`` (V',); the other items of the catalogue, which
    has ``size`` items, those of the history among them, have minus infinity. Raises
    DivergedError on NaN scores.
    """
    if np.isnan(scores).any():
        raise DivergedError(_DIVERGED)
    place = int(np.searchsorted(items, target))
    if place == len(items) or items[place] != target:  # last, behind everything that competes
        return size - len(set(history.tolist()) - {target}), size
    as_good = scores >= scores[place]
    rank_included = int(as_good.sum())
    as_good[np.isin(items, history)] = False
    as_good[place] = True
    return int(as_good.sum()), rank_included


def rank_in_sample(
    scores: NDArray[np.floating], items: ItemCodes, target: int, rivals: ItemCodes
) -> int:
    """1-based rank of one user's target among ``rivals`` (n,) alone, ties against it.

    ``scores`` (V',) of the sorted codes ``items`` (V',), minus infinity for all others.
    """
    wanted = np.append(target, rivals)
    known = np.isin(wanted, items)
    chosen = np.full(len(wanted), -np.inf)
    chosen[known] = scores[np.searchsorted(items, wanted[known])]
    return 1 + int((chosen[1:] >= chosen[0]).sum())


COUNTS = ("users", "clients")


def per_user(ranks: Ranks, metric: str) -> NDArray[np.float64]:
    """Value of the metric of that name of every user: (U,), see :func:`metric_named`."""
    return metric_named(metric).values(_as_array(ranks))


def ranking_sums(ranks: Ranks) -> dict[str, float]:
    """Sum over the users of every metric in METRICS, and their number under "users"."""
    array = _as_array(ranks)
    sums = {metric.name: float(metric.values(array).sum()) for metric in registry.METRICS}
    return {**sums, "users": float(len(array))}


def merge(*sums: Mapping[str, float]) -> dict[str, float]:
    """Sums of the union of disjoint groups of users.

    Raises ValueError when nothing is given or when the groups do not report the same keys.
    """
    if not sums:
        raise ValueError("nothing to merge: give the sums of at least one group of users")
    for position, group in enumerate(sums):
        if group.keys() != sums[0].keys():
            differing = sorted(group.keys() ^ sums[0].keys())
            raise ValueError(f"group {position} differs from group 0 in the keys {differing}")
    return {key: math.fsum(group[key] for group in sums) for key in sums[0]}


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Every sum divided by "users", what is under "clients/" by "clients"; these stay counts.

    All zero without users.
    """
    if "users" not in sums:
        raise ValueError(f'sums without "users" cannot be averaged; the keys are {sorted(sums)}')
    users, clients = sums["users"], sums.get("clients", 0.0)
    return {
        key: value
        if key in COUNTS
        else value / max(clients if key.startswith(OF_CLIENTS) else users, 1.0)
        for key, value in sums.items()
    }


def _as_array(ranks: Ranks) -> ItemCodes:
    return np.asarray(ranks.cpu() if isinstance(ranks, Tensor) else ranks)


def _check_shapes(scores: Tensor, targets: Tensor, excluded: Tensor) -> None:
    agree = scores.ndim == 2 and excluded.shape == scores.shape
    if not agree or targets.shape != scores.shape[:1]:
        raise ValueError(
            "expected scores (U, V+1), targets (U,) and excluded (U, V+1), got "
            f"{tuple(scores.shape)}, {tuple(targets.shape)} and {tuple(excluded.shape)}"
        )
    if excluded.dtype != torch.bool:
        raise ValueError(f"excluded must be a boolean mask, got {excluded.dtype}")


def _check_values(scores: Tensor, targets: Tensor) -> None:
    outside = (targets < 1) | (targets >= scores.shape[1])
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"target {int(targets[row])} in row {row} is not an item code: "
            f"codes are 1..{scores.shape[1] - 1}, 0 is padding"
        )
    broken = scores.isnan().any(1)
    if broken.any():
        raise DivergedError(
            f"the scores of {int(broken.sum())} of {len(broken)} users contain NaN (first: row "
            f"{int(broken.nonzero()[0])}): {_DIVERGED}"
        )
