"""Losses: cross-entropy over a client's candidates, and the terms added to it.

The logits, positions x catalogue, are the largest tensor of a training step. They are therefore
made, turned into gradients and dropped a chunk of positions at a time, or sampled.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pfsr_core.items.soft_targets import SoftTargets
from pfsr_core.models.ops.matmul import add_product, product
from pfsr_core.params import Params
from pfsr_core.training.fisher import Masks

CHUNK = 256  # positions whose logits live at once


def next_item_cross_entropy(
    hidden: Tensor, table: Tensor, targets: Tensor, soft: SoftTargets | None = None
) -> Tensor:
    """Mean cross-entropy of the next item at every real position.

    Args:
        hidden: What each position expects (B, L, D).
        table: Item table (V' + 1, D), whose rows but the first, padding, all compete.
        targets: Row numbers (B, L), 0 where there is none.
        soft: Who takes a part of the target's probability (B, L, N), see
            :mod:`pfsr_core.items.soft_targets`; None leaves it all to the target.

    Returns:
        A scalar.
    """
    real = targets > 0
    columns, weights = targets[real][:, None] - 1, hidden.new_ones(int(real.sum()), 1)
    if soft is not None:
        others, parts = soft.rows[real] - 1, soft.weights[real].to(hidden.dtype)
        columns = torch.cat([columns, others], dim=1)
        weights = torch.cat([weights - parts.sum(1, keepdim=True), parts], dim=1)
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden[real], table[1:], columns, weights)[0]  # type: ignore[no-untyped-call]
    return loss


def add_soft_targets(losses: Tensor, logits: Tensor, labels: Tensor, soft: SoftTargets) -> Tensor:
    """``losses`` (K, R), cross-entropies of ``logits`` (K, R, V'), with soft targets for hard ones.

    ``labels`` (K, R): columns, -1 where there is none; ``soft`` (K, R, N). The difference is
    ``sum_j q_j (logit_y - logit_j)`` over the others j, as log p differs from the logits by a
    number that is the same for all.
    """
    own = logits.gather(2, labels.clamp(min=0)[..., None])
    others = logits.gather(2, soft.rows - 1)
    return losses + (soft.weights.to(logits.dtype) * (own - others)).sum(2)


def sampled_cross_entropy(
    hidden: Tensor, table: Tensor, targets: Tensor, negatives: Tensor
) -> Tensor:
    """The same with a sample of the rows in place of all but the target's.

    ``negatives`` (n,): row numbers drawn uniformly without replacement from 1 .. V', for all
    positions alike. Their logits are raised by log(V' / n), which makes the sum of exponentials
    right on average (Bengio and Senecal 2008); where one is a position's target, it does not count
    twice. With all rows drawn this is :func:`next_item_cross_entropy`.
    """
    real = targets > 0
    inputs, wanted = hidden[real], targets[real]
    positive = (inputs * table[wanted]).sum(-1, keepdim=True)
    others = inputs @ table[negatives].T + math.log((len(table) - 1) / len(negatives))
    others = others.masked_fill(wanted[:, None] == negatives, -torch.inf)
    labels = torch.zeros_like(wanted)
    return F.cross_entropy(torch.cat([positive, others], dim=1), labels)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``inputs @ table.T``: inputs (T, D), table (V, D).

    The target distribution is sparse: ``weights`` (T, N) on the ``columns`` (T, N), which may name
    one twice.

    Both gradients are made with the loss, a chunk at a time: (CHUNK, V) logits live, never (T, V),
    and nothing is computed twice. Once differentiable.
    """

    @staticmethod
    def forward(
        inputs: Tensor, table: Tensor, columns: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_inputs, grad_table = torch.empty_like(inputs), torch.zeros_like(table)
        total = inputs.new_zeros(())
        for rows in (slice(i, i + CHUNK) for i in range(0, len(columns), CHUNK)):
            part, wanted, weight = inputs[rows], columns[rows], weights[rows]
            scores = torch.log_softmax(product(part, table.T), dim=1)
            total -= (weight * scores.gather(1, wanted)).sum()
            grad = scores.exp_().scatter_add_(1, wanted, -weight)
            grad_inputs[rows] = product(grad, table)
            add_product(grad_table, grad.T, part)
        count = len(columns)
        return total / count, grad_inputs.div_(count), grad_table.div_(count)

    @staticmethod
    def setup_context(ctx: Any, _inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_inputs, grad_table = ctx.saved_tensors
        return grads[0] * grad_inputs, grads[0] * grad_table, None, None


def proximal(params: Params, anchor: Params, strength: float) -> Tensor:
    """FedProx: strength / 2 * squared distance to the parameters received (Li et al. 2020)."""
    gaps = [(params[name] - anchor[name]).square().sum() for name in anchor]
    return strength / 2 * torch.stack(gaps).sum()


def keep_local(params: Params, previous: Params, masks: Masks, strength: float) -> Tensor:
    """Dynamic magnitude loss, the anchor to localized preferences.

    ``strength / 2 * sum_j M_j (theta_j - theta_k_old_j)^2`` over the masked coordinates.
    """
    gaps = [(masks[name] * (params[name] - previous[name])).square().sum() for name in previous]
    return strength / 2 * torch.stack(gaps).sum()


def magnitude(
    params: Params, shared: Params, masks: Masks, *, norm: float, strength: float, side: str
) -> Tensor:
    """Dynamic magnitude loss, the shared part, whose change has the norm C_t = ``norm`` as a bound.

    ``strength / 2 * max(0, || (1 - M)(theta - theta_g) ||_2 - C_t)^2``; with ``side`` "both" in
    place of "above" without the maximum (FedDPA): a smaller change is pulled up to C_t as well.
    """
    gaps = [(~masks[name] * (params[name] - shared[name])).reshape(-1) for name in shared]
    length: Tensor = torch.linalg.vector_norm(torch.cat(gaps))
    excess = length - norm
    return strength / 2 * (excess.relu() if side == "above" else excess).square()
