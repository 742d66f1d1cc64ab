"""Aggregation: weighted means of replies, sums of their numbers, and the check of a reply."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.federated.algorithm import ClientUpdate, Reply, Sums
from pfsr_core.federated.protocol import ProtocolError
from pfsr_core.params import Params, Shapes, unpack


def unpack_shared(flat_vector: NDArray[Any], shapes: Shapes) -> Params:
    """Parameters of a vector that came over the network, (sum of sizes,) float32.

    Raises:
        ProtocolError: another dtype or size.
    """
    try:
        return unpack(flat_vector, shapes)
    except ValueError as error:
        raise ProtocolError(str(error)) from None


def as_reply(update: ClientUpdate) -> Reply:
    """One client's update as a reply of one."""
    return Reply(update.params, update.weight, update.metrics, (update.norm,))


class ReplySum:
    """Replies added up one by one, so that a node of thousands of clients holds one sum.

    Weighted mean of means, sums of sums: exact, up to the order of the summation. Accumulates in
    float64 and answers in float32.
    """

    def __init__(self) -> None:
        """Starts with no reply."""
        self._total: Params = {}
        self._weight = 0.0
        self._metrics: Sums = {}
        self._norms: list[float] = []

    def add(self, reply: Reply) -> None:
        """Adds a reply, by its weight."""
        for tensor_name, tensor in reply.params.items():
            if tensor_name not in self._total:
                self._total[tensor_name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._total[tensor_name].add_(tensor, alpha=reply.weight)
        self._weight += reply.weight
        self._metrics = merge_sums((self._metrics, reply.metrics))
        self._norms.extend(reply.norms)

    def mean(self) -> Reply:
        """Everything added so far as one reply. Raises ValueError when that is nothing."""
        if not self._norms:
            raise ValueError("no reply to merge")
        mean_params = {
            tensor_name: (total / self._weight).float()
            for tensor_name, total in self._total.items()
        }
        return Reply(mean_params, self._weight, self._metrics, tuple(self._norms))


def merge_replies(replies: Sequence[Reply]) -> Reply:
    """All of them as one, see :class:`ReplySum`. Raises ValueError without replies."""
    reply_sum = ReplySum()
    for reply in replies:
        reply_sum.add(reply)
    return reply_sum.mean()


def merge_sums(sums: Iterable[Mapping[str, float]]) -> Sums:
    """Adds sums and counts key by key; a key that one side lacks counts as zero."""
    total: Sums = {}
    for part_sums in sums:
        for metric_name, metric_value in part_sums.items():
            total[metric_name] = total.get(metric_name, 0.0) + metric_value
    return total


def reply_problem(
    reply: Reply, shapes: Shapes, max_weight: float, sent_params: Params, max_change: float
) -> str | None:
    """Why a reply must not be aggregated, or None. Looks at this reply alone.

    Args:
        reply: the reply of one node.
        shapes: names and shapes that it must have.
        max_weight: the largest weight, of all its clients.
        sent_params: the shared parameters that it answers.
        max_change: how far from ``sent_params`` it may be, L2 norm.
    """
    if set(reply.params) != set(shapes):
        differing_names = sorted(set(reply.params) ^ set(shapes))
        return f"names differ: {', '.join(differing_names)}"
    for tensor_name, tensor in reply.params.items():
        tensor_problem = _tensor_problem(tensor, shapes[tensor_name])
        if tensor_problem:
            return f"{tensor_name}: {tensor_problem}"
    if not isfinite(reply.weight) or not 0 < reply.weight <= max_weight:
        return f"weight {reply.weight} is not in (0, {max_weight:g}]"
    squared_change = sum(
        float((tensor.double() - sent_params[tensor_name].double()).square().sum())
        for tensor_name, tensor in reply.params.items()
        if tensor_name in sent_params
    )
    if not squared_change <= max_change**2:
        return f"a change of norm {squared_change**0.5:.3g} is above {max_change:g}"
    reply_numbers = [*reply.metrics.values(), *reply.norms]
    return None if all(map(isfinite, reply_numbers)) else "a metric is not finite"


def _tensor_problem(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    if tuple(tensor.shape) != shape:
        return f"shape {tuple(tensor.shape)} instead of {shape}"
    if not tensor.is_floating_point():
        return f"dtype {tensor.dtype} is not a float"
    return None if bool(tensor.isfinite().all()) else "values are not finite"
