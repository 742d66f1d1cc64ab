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
    user_counts = np.ones(len(mean_a))
    return clustered_bootstrap(
        mean_a, mean_b, user_counts, samples=samples, seed=seed, confidence=confidence
    )


def clustered_bootstrap(
    a: FloatArray,
    b: FloatArray,
    user_counts: FloatArray,
    *,
    samples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Mean of a - b over users, resampling whole clients, whose users depend on each other.

    ``a`` and ``b`` are per-client sums (C,), or (S, C) with one row per seed, ``user_counts`` (C,)
    the users behind them; clients without users are left out.

    Raises ValueError when the clients differ in number, none has users, or a value is not finite.
    """
    sum_a, sum_b = _seed_mean(a), _seed_mean(b)
    _check(sum_a, sum_b, np.asarray(user_counts), samples, confidence)
    has_users = np.asarray(user_counts) > 0
    unit_differences = (sum_a - sum_b)[has_users]
    unit_weights = np.asarray(user_counts, np.float64)[has_users]
    resampled_means = _resampled_means(unit_differences, unit_weights, samples, seed)
    tail_share = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled_means, [tail_share, 1.0 - tail_share])
    return Interval(
        difference=float(unit_differences.sum() / unit_weights.sum()),
        low=float(low),
        high=float(high),
        p_value=_two_sided_p_value(resampled_means),
    )


def _resampled_means(
    unit_sums: FloatArray, unit_weights: FloatArray, samples: int, seed: int
) -> FloatArray:
    """Mean of each resample: (samples,). Drawn in chunks, so that memory stays bounded."""
    rng = np.random.default_rng(seed)
    num_units = len(unit_sums)
    chunk_rows = max(1, DRAWS_PER_CHUNK // num_units)
    chunks = []
    for chunk_start in range(0, samples, chunk_rows):
        drawn_units = rng.integers(
            num_units, size=(min(chunk_rows, samples - chunk_start), num_units), dtype=np.int32
        )
        chunks.append(unit_sums[drawn_units].sum(1) / unit_weights[drawn_units].sum(1))
    return np.concatenate(chunks)


def _two_sided_p_value(resampled_means: FloatArray) -> float:
    """Twice the smaller tail beyond zero; one is added so that no finite sample gives p = 0."""
    smaller_tail = min(int((resampled_means <= 0).sum()), int((resampled_means >= 0).sum()))
    return min(1.0, 2.0 * (1 + smaller_tail) / (1 + len(resampled_means)))


def _seed_mean(values: FloatArray) -> FloatArray:
    value_array = np.asarray(values, np.float64)
    if value_array.ndim not in (1, 2):
        raise ValueError(f"expected values (U,) or (seeds, U), got the shape {value_array.shape}")
    return value_array if value_array.ndim == 1 else value_array.mean(0)


def _check(
    a: FloatArray, b: FloatArray, user_counts: FloatArray, samples: int, confidence: float
) -> None:
    if not a.shape == b.shape == user_counts.shape:
        raise ValueError(
            f"paired values must belong to the same units: a has {a.shape[0]}, b has "
            f"{b.shape[0]}, the counts have the shape {user_counts.shape}"
        )
    if not (user_counts > 0).any() or (user_counts < 0).any():
        raise ValueError("nothing to resample: no unit has users, or a count is negative")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("the values to compare contain NaN or infinity")
    if samples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"samples must be positive and confidence between 0 and 1, got {samples}, {confidence}"
        )
