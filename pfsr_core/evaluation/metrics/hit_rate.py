"""Hit rate: HR@k = [rank <= k]. With one relevant item per user it equals recall@k."""

from __future__ import annotations

import numpy as np

from pfsr_core.evaluation.metrics.metric import Metric, UserRanks, UserValues, check_cutoff


def hit_rate(cutoff: int, *, headline: bool = False) -> Metric:
    """HR@``cutoff``: 1 where the held-out item is among the first ``cutoff`` items, else 0."""
    check_cutoff(cutoff)

    def values(ranks: UserRanks) -> UserValues:
        return np.where(ranks <= cutoff, 1.0, 0.0)

    return Metric(f"hr@{cutoff}", f"HR@{cutoff}", values, headline)
