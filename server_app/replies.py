"""Validates each reply independently; invalid ones are dropped with a reason.

:func:`read_train`, :func:`read_finish` and :func:`read_baselines` read the three kinds of answers
and refuse what their kind must not hold; nothing else of a node's answer is used.
"""

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
from server_app.messaging import Exchange
from server_app.roster import Member

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


def content_of(received: Exchange, node_id: int) -> RecordDict:
    """What the node answered. Raises ProtocolError when it did not."""
    if node_id not in received.answers:
        raise ProtocolError(received.problems.get(node_id, "not connected"))
    return received.answers[node_id]


def drop_of(member: Member, reason: object, num_clients: int) -> Mapping[str, Any]:
    """The log's record of a dropped answer, that of ``num_clients`` clients."""
    return {"node": member.label, "reason": str(reason), "clients": num_clients}


def format_reasons(dropped_replies: Sequence[Mapping[str, Any]]) -> str:
    """Why answers were dropped, node by node, as a sentence."""
    return (
        "; ".join(
            f"node {dropped_reply['node']}: {dropped_reply['reason']}"
            for dropped_reply in dropped_replies
        )
        or "none"
    )


def read_train(content: RecordDict, expected: Expected) -> TrainAnswer:
    """Reads the answer to a round.

    Raises:
        ProtocolError: The answer must not be used; says why.
    """
    train_metrics = _metrics(content, {SHARED, METRICS})
    check_names(train_metrics, (WEIGHT, NORMS, *COST), (TRAINING, *EVALUATION))
    reply = _reply(content, train_metrics, expected) if expected.clients else None
    evaluated_sums = evaluation_sums(train_metrics) if expected.evaluate else {}
    return TrainAnswer(
        reply, evaluated_sums, scalar(train_metrics, SECONDS), scalar(train_metrics, PEAK_MEMORY)
    )


def read_finish(content: RecordDict, num_clients: int) -> Mapping[str, Any]:
    """The metrics of a last answer. Raises ProtocolError."""
    finish_metrics = _metrics(content, {METRICS})
    allowed_prefixes = [*EVALUATION, CLIENT, FINETUNED, OUTCOME]
    check_names(finish_metrics, COST, allowed_prefixes)
    for metric_name, metric_value in finish_metrics.items():
        if isinstance(metric_value, list):
            _check_finite(metric_name, numbers(finish_metrics, metric_name, num_clients))
    evaluation_sums(finish_metrics)
    return finish_metrics


def read_baselines(content: RecordDict, num_clients: int) -> Mapping[str, Any]:
    """The sums of the baselines, names beginning with "<baseline>/". Raises ProtocolError."""
    baseline_metrics = _metrics(content, {METRICS})
    for metric_name, metric_value in baseline_metrics.items():
        metric_values = (
            numbers(baseline_metrics, metric_name, num_clients)
            if isinstance(metric_value, list)
            else [metric_value]
        )
        _check_finite(metric_name, metric_values)
    return baseline_metrics


def evaluation_sums(node_metrics: Mapping[str, Any], name_prefix: str = "") -> Sums:
    """Sums under ``name_prefix``, by "<split>/<candidates>/<metric>". Raises ProtocolError."""
    sums = {
        f"{split_prefix}{metric_name}": metric_sum
        for split_prefix in EVALUATION
        for metric_name, metric_sum in under(name_prefix + split_prefix, node_metrics).items()
    }
    if not sums:
        raise ProtocolError(f"no sums of {name_prefix}valid and {name_prefix}test")
    _check_finite(f"{name_prefix}valid or {name_prefix}test", sums.values())
    return sums


def evaluation_means(node_sums: Sequence[Sums]) -> dict[str, float]:
    """Means over the users of all parts, and the counts "<split>/users"."""
    total_sums = merge(*node_sums)
    return {
        f"{split_name}/{metric_name}": mean_value
        for split_name in SPLITS
        for metric_name, mean_value in means(under(f"{split_name}/", total_sums)).items()
    }


def client_result_rows(
    node_metrics: Mapping[str, Any],
    name_prefix: str,
    client_names: Sequence[str],
    variant_names: Iterable[str] = (),
) -> Iterator[dict[str, Any]]:
    """One row for each split, client and variant, with the sums of ``client_sum_keys``.

    Args:
        node_metrics: The metrics of a node's answer.
        name_prefix: Prefix of the metrics to read.
        client_names: The clients, in the order of the lists among the metrics.
        variant_names: Variants of the model after "", the one that a client recommends with.
    """
    sum_keys, of_variants = client_sum_keys(), variant_sum_keys()
    for split_name in SPLITS:
        row_prefix = f"{name_prefix}{CLIENT}{split_name}/"
        for variant_name in ("", *variant_names):
            column_names = [
                f"{variant_name}/{sum_key}" if variant_name and sum_key in of_variants else sum_key
                for sum_key in sum_keys
            ]
            sum_columns = [
                numbers(node_metrics, row_prefix + column_name, len(client_names))
                for column_name in column_names
            ]
            for client_name, *client_sums in zip(client_names, *sum_columns, strict=True):
                sums_by_key = dict(zip(sum_keys, client_sums, strict=True))
                yield {
                    "client": client_name,
                    "split": split_name,
                    "variant": variant_name,
                    **sums_by_key,
                }


def _reply(content: RecordDict, train_metrics: Mapping[str, Any], expected: Expected) -> Reply:
    num_clients = len(expected.clients)
    shared_arrays = content.array_records[SHARED]
    if list(shared_arrays) != [SHARED]:
        raise ProtocolError(f"arrays {sorted(shared_arrays)} instead of {SHARED!r}")
    reply = Reply(
        params=unpack_shared(shared_arrays[SHARED].numpy(), expected.shapes),
        weight=scalar(train_metrics, WEIGHT),
        metrics=under(TRAINING, train_metrics),
        norms=tuple(numbers(train_metrics, NORMS, num_clients)),
    )
    reply_error = reply_problem(
        reply,
        expected.shapes,
        expected.max_weight * num_clients,
        expected.sent,
        expected.max_change,
    )
    if reply_error:
        raise ProtocolError(reply_error)
    return reply


def _metrics(content: RecordDict, record_names: set[str]) -> Mapping[str, Any]:
    if set(content) != record_names:
        raise ProtocolError(f"records {sorted(content)} instead of {sorted(record_names)}")
    if set(content.metric_records) != {METRICS}:
        raise ProtocolError(f"{METRICS} is not a record of metrics")
    if SHARED in record_names and set(content.array_records) != {SHARED}:
        raise ProtocolError(f"{SHARED} is not a record of arrays")
    metric_record: Mapping[str, Any] = content.metric_records[METRICS]
    return metric_record


def _check_finite(metric_name: str, metric_values: Any) -> None:
    if not all(map(isfinite, metric_values)):
        raise ProtocolError(f"{metric_name} is not finite")
