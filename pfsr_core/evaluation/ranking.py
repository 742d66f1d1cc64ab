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
    scores: NDArray[np.float32],
    item_codes: ItemCodes,
    target: int,
    history: ItemCodes,
    catalogue_size: int,
) -> tuple[int, int]:
    """:func:`ranks` of one user without and with the items of the history, in O(candidates).

    ``scores`` (V',) of the sorted codes ``item_codes`` (V',); the other items of the catalogue,
    which has ``catalogue_size`` items, those of the history among them, have minus infinity. Raises
    DivergedError on NaN scores.
    """
    if np.isnan(scores).any():
        raise DivergedError(_DIVERGED)
    target_index = int(np.searchsorted(item_codes, target))
    if target_index == len(item_codes) or item_codes[target_index] != target:
        # Last, behind everything that competes.
        return catalogue_size - len(set(history.tolist()) - {target}), catalogue_size
    as_good = scores >= scores[target_index]
    rank_included = int(as_good.sum())
    as_good[np.isin(item_codes, history)] = False
    as_good[target_index] = True
    return int(as_good.sum()), rank_included


def rank_in_sample(
    scores: NDArray[np.floating], item_codes: ItemCodes, target: int, rivals: ItemCodes
) -> int:
    """1-based rank of one user's target among ``rivals`` (n,) alone, ties against it.

    ``scores`` (V',) of the sorted codes ``item_codes`` (V',), minus infinity for all others.
    """
    wanted_items = np.append(target, rivals)
    has_score = np.isin(wanted_items, item_codes)
    wanted_scores = np.full(len(wanted_items), -np.inf)
    wanted_scores[has_score] = scores[np.searchsorted(item_codes, wanted_items[has_score])]
    return 1 + int((wanted_scores[1:] >= wanted_scores[0]).sum())


COUNTS = ("users", "clients")


def per_user(ranks: Ranks, metric_name: str) -> NDArray[np.float64]:
    """Value of the metric of that name of every user: (U,), see :func:`metric_named`."""
    return metric_named(metric_name).values(_as_array(ranks))


def ranking_sums(ranks: Ranks) -> dict[str, float]:
    """Sum over the users of every metric in METRICS, and their number under "users"."""
    rank_array = _as_array(ranks)
    metric_sums = {
        metric.name: float(metric.values(rank_array).sum()) for metric in registry.METRICS
    }
    return {**metric_sums, "users": float(len(rank_array))}


def merge(*sums: Mapping[str, float]) -> dict[str, float]:
    """Sums of the union of disjoint groups of users.

    Raises ValueError when nothing is given or when the groups do not report the same keys.
    """
    if not sums:
        raise ValueError("nothing to merge: give the sums of at least one group of users")
    for group_index, group_sums in enumerate(sums):
        if group_sums.keys() != sums[0].keys():
            differing_keys = sorted(group_sums.keys() ^ sums[0].keys())
            raise ValueError(
                f"group {group_index} differs from group 0 in the keys {differing_keys}"
            )
    return {
        metric_key: math.fsum(group_sums[metric_key] for group_sums in sums)
        for metric_key in sums[0]
    }


def means(metric_sums: Mapping[str, float]) -> dict[str, float]:
    """Every sum divided by "users", what is under "clients/" by "clients"; these stay counts.

    All zero without users.
    """
    if "users" not in metric_sums:
        raise ValueError(
            f'sums without "users" cannot be averaged; the keys are {sorted(metric_sums)}'
        )
    num_users, num_clients = metric_sums["users"], metric_sums.get("clients", 0.0)
    return {
        metric_key: metric_sum
        if metric_key in COUNTS
        else metric_sum / max(num_clients if metric_key.startswith(OF_CLIENTS) else num_users, 1.0)
        for metric_key, metric_sum in metric_sums.items()
    }


def _as_array(ranks: Ranks) -> ItemCodes:
    return np.asarray(ranks.cpu() if isinstance(ranks, Tensor) else ranks)


def _check_shapes(scores: Tensor, targets: Tensor, excluded: Tensor) -> None:
    shapes_agree = scores.ndim == 2 and excluded.shape == scores.shape
    if not shapes_agree or targets.shape != scores.shape[:1]:
        raise ValueError(
            "expected scores (U, V+1), targets (U,) and excluded (U, V+1), got "
            f"{tuple(scores.shape)}, {tuple(targets.shape)} and {tuple(excluded.shape)}"
        )
    if excluded.dtype != torch.bool:
        raise ValueError(f"excluded must be a boolean mask, got {excluded.dtype}")


def _check_values(scores: Tensor, targets: Tensor) -> None:
    is_outside = (targets < 1) | (targets >= scores.shape[1])
    if is_outside.any():
        first_row = int(is_outside.nonzero()[0])
        raise ValueError(
            f"target {int(targets[first_row])} in row {first_row} is not an item code: "
            f"codes are 1..{scores.shape[1] - 1}, 0 is padding"
        )
    has_nan = scores.isnan().any(1)
    if has_nan.any():
        raise DivergedError(
            f"the scores of {int(has_nan.sum())} of {len(has_nan)} users contain NaN (first: row "
            f"{int(has_nan.nonzero()[0])}): {_DIVERGED}"
        )
