"""Answers of the nodes, each read and judged alone: a bad one is dropped with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from flwr.app import RecordDict

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.evaluation.metrics.registry import client_sum_keys, variant_sum_keys
from pfsr_core.evaluation.ranking import means, merge
from pfsr_core.federated.aggregation import reply_problem, unpack_shared
from pfsr_core.federated.algorithm import Reply, Sums
from pfsr_core.federated.protocol import (
    CLIENT,
    FINETUNED,
    METRICS,
    NORMS,
    OUTCOME,
    PEAK_MEMORY,
    SECONDS,
    SHARED,
    TRAINING,
    WEIGHT,
    ProtocolError,
    check_names,
    numbers,
    scalar,
    under,
)
from pfsr_core.params import Params, Shapes

EVALUATION = tuple(f"{split}/" for split in SPLITS)
COST = (SECONDS, PEAK_MEMORY)


@dataclass(frozen=True)
class TrainAnswer:
    """``reply`` is None where nothing was to train; ``sums``: those of the evaluation."""

    reply: Reply | None
    sums: Sums
    seconds: float
    peak_memory: float


@dataclass(frozen=True)
class Expected:
    """What a node was asked, and so what its answer must look like."""

    shapes: Shapes
    clients: Sequence[str]
    evaluate: bool
    sent: Params
    max_weight: float  # of one client
    max_change: float  # L2 norm


def read_train(content: RecordDict, expected: Expected) -> TrainAnswer:
    """Raises ProtocolError with the reason why the answer must not be used."""
    metrics = _metrics(content, {SHARED, METRICS})
    check_names(metrics, (WEIGHT, NORMS, *COST), (TRAINING, *EVALUATION))
    reply = _reply(content, metrics, expected) if expected.clients else None
    sums = evaluation_sums(metrics) if expected.evaluate else {}
    return TrainAnswer(reply, sums, scalar(metrics, SECONDS), scalar(metrics, PEAK_MEMORY))


def read_finish(content: RecordDict, clients: int) -> Mapping[str, Any]:
    """The metrics of a last answer. Raises ProtocolError."""
    metrics = _metrics(content, {METRICS})
    stages = [*EVALUATION, CLIENT, FINETUNED, OUTCOME]
    check_names(metrics, COST, stages)
    for name, value in metrics.items():
        if isinstance(value, list):
            _check_finite(name, numbers(metrics, name, clients))
    evaluation_sums(metrics)
    return metrics


def read_baselines(content: RecordDict, clients: int) -> Mapping[str, Any]:
    """The sums of the baselines, names beginning with "<baseline>/". Raises ProtocolError."""
    metrics = _metrics(content, {METRICS})
    for name, value in metrics.items():
        values = numbers(metrics, name, clients) if isinstance(value, list) else [value]
        _check_finite(name, values)
    return metrics


def evaluation_sums(metrics: Mapping[str, Any], prefix: str = "") -> Sums:
    """Sums under ``prefix``, by "<split>/<candidates>/<metric>". Raises ProtocolError."""
    sums = {
        f"{start}{name}": value
        for start in EVALUATION
        for name, value in under(prefix + start, metrics).items()
    }
    if not sums:
        raise ProtocolError(f"no sums of {prefix}valid and {prefix}test")
    _check_finite(f"{prefix}valid or {prefix}test", sums.values())
    return sums


def evaluation_means(parts: Sequence[Sums]) -> dict[str, float]:
    """Means over the users of all parts, and the counts "<split>/users"."""
    total = merge(*parts)
    return {
        f"{split}/{name}": value
        for split in SPLITS
        for name, value in means(under(f"{split}/", total)).items()
    }


def client_rows(
    metrics: Mapping[str, Any], prefix: str, clients: Sequence[str], variants: Iterable[str] = ()
) -> Iterator[dict[str, Any]]:
    """One row for each split, client and variant: the sums of ``client_sum_keys`` under ``prefix``.

    The model that a client recommends with has the variant "", before those of ``variants``.
    """
    keys, of_variants = client_sum_keys(), variant_sum_keys()
    for split in SPLITS:
        start = f"{prefix}{CLIENT}{split}/"
        for variant in ("", *variants):
            names = [f"{variant}/{key}" if variant and key in of_variants else key for key in keys]
            columns = [numbers(metrics, start + name, len(clients)) for name in names]
            for client, *values in zip(clients, *columns, strict=True):
                row = dict(zip(keys, values, strict=True))
                yield {"client": client, "split": split, "variant": variant, **row}


def _reply(content: RecordDict, metrics: Mapping[str, Any], expected: Expected) -> Reply:
    count = len(expected.clients)
    arrays = content.array_records[SHARED]
    if list(arrays) != [SHARED]:
        raise ProtocolError(f"arrays {sorted(arrays)} instead of {SHARED!r}")
    reply = Reply(
        params=unpack_shared(arrays[SHARED].numpy(), expected.shapes),
        weight=scalar(metrics, WEIGHT),
        metrics=under(TRAINING, metrics),
        norms=tuple(numbers(metrics, NORMS, count)),
    )
    problem = reply_problem(
        reply, expected.shapes, expected.max_weight * count, expected.sent, expected.max_change
    )
    if problem:
        raise ProtocolError(problem)
    return reply


def _metrics(content: RecordDict, records: set[str]) -> Mapping[str, Any]:
    if set(content) != records:
        raise ProtocolError(f"records {sorted(content)} instead of {sorted(records)}")
    if set(content.metric_records) != {METRICS}:
        raise ProtocolError(f"{METRICS} is not a record of metrics")
    if SHARED in records and set(content.array_records) != {SHARED}:
        raise ProtocolError(f"{SHARED} is not a record of arrays")
    metrics: Mapping[str, Any] = content.metric_records[METRICS]
    return metrics


def _check_finite(name: str, values: Any) -> None:
    if not all(map(isfinite, values)):
        raise ProtocolError(f"{name} is not finite")
