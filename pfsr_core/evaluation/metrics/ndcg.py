"""Normalized discounted cumulative gain (Järvelin and Kekäläinen, TOIS 2002).

With one relevant item the ideal gain is 1: NDCG@k = [rank <= k] / log2(rank + 1).
"""

from __future__ import annotations

import numpy as np

from pfsr_core.evaluation.metrics.metric import Metric, UserRanks, UserValues, check_cutoff


def ndcg(cutoff: int, *, headline: bool = False) -> Metric:
    """NDCG@``cutoff``: 1 at rank 1, less with every rank, 0 behind ``cutoff``."""
    check_cutoff(cutoff)

    def values(ranks: UserRanks) -> UserValues:
        return np.where(ranks <= cutoff, 1.0 / np.log2(ranks + 1.0), 0.0)

    return Metric(f"ndcg@{cutoff}", f"NDCG@{cutoff}", values, headline)
