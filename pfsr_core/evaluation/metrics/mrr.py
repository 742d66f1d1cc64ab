"""Mean reciprocal rank: the mean of 1 / rank, without a cut-off."""

from __future__ import annotations

from pfsr_core.evaluation.metrics.metric import Metric, UserRanks, UserValues


def reciprocal_rank(*, headline: bool = False) -> Metric:
    """1 / rank of the held-out item."""

    def values(ranks: UserRanks) -> UserValues:
        return 1.0 / ranks.astype(float)

    return Metric("mrr", "MRR", values, headline)
