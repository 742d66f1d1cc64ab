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


def unpack_shared(vector: NDArray[Any], shapes: Shapes) -> Params:
    """Parameters of a vector that came over the network, (sum of sizes,) float32.

    Raises:
        ProtocolError: another dtype or size.
    """
    try:
        return unpack(vector, shapes)
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
        self._total: Params = {}
        self._weight = 0.0
        self._metrics: Sums = {}
        self._norms: list[float] = []

    def add(self, reply: Reply) -> None:
        """Adds a reply, by its weight."""
        for name, tensor in reply.params.items():
            if name not in self._total:
                self._total[name] = torch.zeros_like(tensor, dtype=torch.float64)
            self._total[name].add_(tensor, alpha=reply.weight)
        self._weight += reply.weight
        self._metrics = merge_sums((self._metrics, reply.metrics))
        self._norms.extend(reply.norms)

    def mean(self) -> Reply:
        """Everything added so far as one reply. Raises ValueError when that is nothing."""
        if not self._norms:
            raise ValueError("no reply to merge")
        params = {name: (total / self._weight).float() for name, total in self._total.items()}
        return Reply(params, self._weight, self._metrics, tuple(self._norms))


def merge_replies(replies: Sequence[Reply]) -> Reply:
    """All of them as one, see :class:`ReplySum`. Raises ValueError without replies."""
    total = ReplySum()
    for reply in replies:
        total.add(reply)
    return total.mean()


def merge_sums(sums: Iterable[Mapping[str, float]]) -> Sums:
    """Adds sums and counts key by key; a key that one side lacks counts as zero."""
    total: Sums = {}
    for part in sums:
        for key, value in part.items():
            total[key] = total.get(key, 0.0) + value
    return total


def reply_problem(
    reply: Reply, shapes: Shapes, max_weight: float, sent: Params, max_change: float
) -> str | None:
    """Why a reply must not be aggregated, or None. Looks at this reply alone.

    Args:
        reply: the reply of one node.
        shapes: names and shapes that it must have.
        max_weight: the largest weight, of all its clients.
        sent: the shared parameters that it answers.
        max_change: how far from ``sent`` it may be, L2 norm.
    """
    if set(reply.params) != set(shapes):
        differing = sorted(set(reply.params) ^ set(shapes))
        return f"names differ: {', '.join(differing)}"
    for name, tensor in reply.params.items():
        problem = _tensor_problem(tensor, shapes[name])
        if problem:
            return f"{name}: {problem}"
    if not isfinite(reply.weight) or not 0 < reply.weight <= max_weight:
        return f"weight {reply.weight} is not in (0, {max_weight:g}]"
    change = sum(
        float((tensor.double() - sent[name].double()).square().sum())
        for name, tensor in reply.params.items()
        if name in sent
    )
    if not change <= max_change**2:
        return f"a change of norm {change**0.5:.3g} is above {max_change:g}"
    numbers = [*reply.metrics.values(), *reply.norms]
    return None if all(map(isfinite, numbers)) else "a metric is not finite"


def _tensor_problem(tensor: Tensor, shape: tuple[int, ...]) -> str | None:
    if tuple(tensor.shape) != shape:
        return f"shape {tuple(tensor.shape)} instead of {shape}"
    if not tensor.is_floating_point():
        return f"dtype {tensor.dtype} is not a float"
    return None if bool(tensor.isfinite().all()) else "values are not finite"
