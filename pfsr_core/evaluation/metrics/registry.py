"""Which metrics are computed, and the keys under which all files and messages have them.

A new metric, or one at another cut-off, is one line in METRICS; a new kind of metric is a file
beside this one. Sums on the wire, means, summary.json, metrics.jsonl, clients.csv, the final table
and the report page follow from here. Nothing here loads torch.

A key is ``<split>/<candidates>/<metric>``, e.g. ``test/seen-filtered/hr@10``; of a model variant
``<split>/<variant>/<candidates>/<metric>``, and of means over clients ``<split>/clients/<metric>``.
"""

from __future__ import annotations

from pfsr_core.evaluation.metrics.hit_rate import hit_rate
from pfsr_core.evaluation.metrics.metric import Metric
from pfsr_core.evaluation.metrics.mrr import reciprocal_rank
from pfsr_core.evaluation.metrics.ndcg import ndcg

METRICS: tuple[Metric, ...] = (
    hit_rate(5),
    hit_rate(10, headline=True),
    hit_rate(20),
    ndcg(5),
    ndcg(10, headline=True),
    ndcg(20),
    reciprocal_rank(),
)

FAMILIES = {"hr": hit_rate, "ndcg": ndcg}
"""Metrics that exist at any cut-off: :func:`metric_named` finds those that are not in METRICS."""

SELECTION_METRIC = "ndcg@10"
"""A round is selected by it on validation."""

FILTERED = "seen-filtered"
"""Candidates without the items of the user's history: what a user sees."""
INCLUDED = "seen-included"
"""Candidates with the items of the user's history."""
SAMPLED = "sampled-99"
"""99 items that the user never touched, and the held-out one."""
OF_CLIENTS = "clients/"
"""Prefix of sums of the clients' means, in which every client weighs the same."""

VALID_SELECTION = f"valid/{FILTERED}/{SELECTION_METRIC}"
TEST_SELECTION = f"test/{FILTERED}/{SELECTION_METRIC}"


def metric_names() -> list[str]:
    """Names of all metrics, in the order of METRICS."""
    return [metric.name for metric in METRICS]


def headline_metrics() -> list[Metric]:
    """The metrics that are reported client by client and shown in tables."""
    return [metric for metric in METRICS if metric.headline]


def metric_named(metric_name: str) -> Metric:
    """The metric ``metric_name``: one of METRICS, or "hr@k" and "ndcg@k" for any k >= 1.

    Raises:
        ValueError: There is no such metric.
    """
    for metric in METRICS:
        if metric.name == metric_name:
            return metric
    family_name, _, cutoff = metric_name.partition("@")
    if family_name not in FAMILIES or not cutoff.isdecimal() or int(cutoff) < 1:
        known_names = ", ".join(metric_names())
        raise ValueError(
            f"unknown metric {metric_name!r}: use hr@k, ndcg@k (k >= 1) or one of {known_names}"
        )
    return FAMILIES[family_name](int(cutoff))


def variant_sum_keys() -> tuple[str, ...]:
    """Keys of the per-client sums of every variant of a model."""
    return tuple(f"{FILTERED}/{metric.name}" for metric in headline_metrics())


def client_sum_keys() -> tuple[str, ...]:
    """Keys of the per-client sums: those of the metrics, users, covered."""
    return (*variant_sum_keys(), "users", "covered")
