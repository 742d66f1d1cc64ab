"""Full-catalogue ranking metrics of one held-out item per user, kept as mergeable sums.

With a single relevant item at 1-based rank r: HR@k = [r <= k], NDCG@k = [r <= k] / log2(r + 1)
(Järvelin and Kekäläinen, TOIS 2002; the ideal gain is 1) and MRR = 1 / r. A node answers with sums
and the number of users, so that merging nodes is exact; only `means` divides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CUTOFFS = (5, 10, 20)
METRICS = (*(f"hr@{k}" for k in CUTOFFS), *(f"ndcg@{k}" for k in CUTOFFS), "mrr")

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
    kept = int(as_good.sum())
    as_good[np.isin(items, history)] = False
    as_good[place] = True
    return int(as_good.sum()), kept


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
OF_CLIENTS = "clients/"  # prefix of sums of the clients' means


def per_user(ranks: Ranks, metric: str) -> NDArray[np.float64]:
    """Value of ``metric`` ("hr@k", "ndcg@k" for any k >= 1, or "mrr") of every user: (U,)."""
    rank = np.asarray(ranks.cpu() if isinstance(ranks, Tensor) else ranks).astype(np.float64)
    if metric == "mrr":
        return 1.0 / rank
    name, _, cutoff = metric.partition("@")
    if name not in ("hr", "ndcg") or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(f"unknown metric {metric!r}: use hr@k, ndcg@k (k >= 1) or mrr")
    gain = np.ones_like(rank) if name == "hr" else 1.0 / np.log2(rank + 1.0)
    return np.where(rank <= int(cutoff), gain, 0.0)


def ranking_sums(ranks: Ranks) -> dict[str, float]:
    """Sum over the users of every metric in ``METRICS``, and their number under "users"."""
    sums = {metric: float(per_user(ranks, metric).sum()) for metric in METRICS}
    return {**sums, "users": float(len(ranks))}


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
