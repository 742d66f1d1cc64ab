"""How sure is a difference between two methods: bootstrap over users or over whole clients.

The interval is the percentile interval, the p-value its two-sided inversion (Efron and Tibshirani,
An Introduction to the Bootstrap, 1993, chapters 13 and 16), so that the two agree: p < 1 -
confidence exactly where the interval leaves zero out, up to the resolution of the samples. Both
methods are measured on the same users, hence the pairing. Runs with several seeds are averaged per
user first: the interval then speaks of the sampled users, not of the spread between seeds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

DRAWS_PER_CHUNK = 2**21


@dataclass(frozen=True)
class Interval:
    """``difference`` (a minus b) with its interval ``low`` to ``high`` and two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    a: FloatArray, b: FloatArray, samples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """Mean of a - b over users, resampling users.

    ``a`` and ``b`` are per-user values (U,), or (S, U) with one row per seed; column u is the same
    user in both, the number of seeds may differ.

    Raises ValueError when the users differ in number, are none, or a value is not finite.
    """
    mean_a, mean_b = _seed_mean(a), _seed_mean(b)
    counts = np.ones(len(mean_a))
    return clustered_bootstrap(
        mean_a, mean_b, counts, samples=samples, seed=seed, confidence=confidence
    )


def clustered_bootstrap(
    a: FloatArray,
    b: FloatArray,
    counts: FloatArray,
    *,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a - b over users, resampling whole clients, whose users depend on each other.

    ``a`` and ``b`` are per-client sums (C,), or (S, C) with one row per seed, ``counts`` (C,) the
    users behind them; clients without users are left out.

    Raises ValueError when the clients differ in number, none has users, or a value is not finite.
    """
    sum_a, sum_b = _seed_mean(a), _seed_mean(b)
    _check(sum_a, sum_b, np.asarray(counts), samples, confidence)
    present = np.asarray(counts) > 0
    differences = (sum_a - sum_b)[present]
    weights = np.asarray(counts, np.float64)[present]
    replicates = _replicates(differences, weights, samples, seed)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return Interval(
        difference=float(differences.sum() / weights.sum()),
        low=float(low),
        high=float(high),
        p_value=_two_sided(replicates),
    )


def _replicates(sums: FloatArray, weights: FloatArray, samples: int, seed: int) -> FloatArray:
    """Mean of each resample: (samples,). Drawn in chunks, so that memory stays bounded."""
    rng = np.random.default_rng(seed)
    size = len(sums)
    rows = max(1, DRAWS_PER_CHUNK // size)
    chunks = []
    for start in range(0, samples, rows):
        drawn = rng.integers(size, size=(min(rows, samples - start), size), dtype=np.int32)
        chunks.append(sums[drawn].sum(1) / weights[drawn].sum(1))
    return np.concatenate(chunks)


def _two_sided(replicates: FloatArray) -> float:
    """Twice the smaller tail beyond zero; one is added so that no finite sample gives p = 0."""
    smaller = min(int((replicates <= 0).sum()), int((replicates >= 0).sum()))
    return min(1.0, 2.0 * (1 + smaller) / (1 + len(replicates)))


def _seed_mean(values: FloatArray) -> FloatArray:
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2):
        raise ValueError(f"expected values (U,) or (seeds, U), got the shape {array.shape}")
    return array if array.ndim == 1 else array.mean(0)


def _check(
    a: FloatArray, b: FloatArray, counts: FloatArray, samples: int, confidence: float
) -> None:
    if not a.shape == b.shape == counts.shape:
        raise ValueError(
            f"paired values must belong to the same units: a has {a.shape[0]}, b has "
            f"{b.shape[0]}, the counts have the shape {counts.shape}"
        )
    if not (counts > 0).any() or (counts < 0).any():
        raise ValueError("nothing to resample: no unit has users, or a count is negative")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("the values to compare contain NaN or infinity")
    if samples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"samples must be positive and confidence between 0 and 1, got {samples}, {confidence}"
        )
