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

CHUNK = 256  # positions whose logits are in memory at once


def next_item_cross_entropy(
    hidden: Tensor, item_table: Tensor, targets: Tensor, soft_targets: SoftTargets | None = None
) -> Tensor:
    """Mean cross-entropy of the next item at every real position.

    Args:
        hidden: What each position expects (B, L, D).
        item_table: Item table (V' + 1, D), whose rows but the first, padding, all compete.
        targets: Row numbers (B, L), 0 where there is none.
        soft_targets: Who takes a part of the target's probability (B, L, N), see
            :mod:`pfsr_core.items.soft_targets`; None leaves it all to the target.

    Returns:
        A scalar.
    """
    is_real = targets > 0
    columns, weights = targets[is_real][:, None] - 1, hidden.new_ones(int(is_real.sum()), 1)
    if soft_targets is not None:
        soft_columns = soft_targets.rows[is_real] - 1
        soft_weights = soft_targets.weights[is_real].to(hidden.dtype)
        columns = torch.cat([columns, soft_columns], dim=1)
        weights = torch.cat([weights - soft_weights.sum(1, keepdim=True), soft_weights], dim=1)
    mean_loss: Tensor = _ChunkedCrossEntropy.apply(
        hidden[is_real], item_table[1:], columns, weights
    )[0]  # type: ignore[no-untyped-call]
    return mean_loss


def add_soft_targets(
    losses: Tensor, logits: Tensor, labels: Tensor, soft_targets: SoftTargets
) -> Tensor:
    """``losses`` (K, R), cross-entropies of ``logits`` (K, R, V'), with soft targets for hard ones.

    ``labels`` (K, R): columns, -1 where there is none; ``soft_targets`` (K, R, N). The difference
    is ``sum_j q_j (logit_y - logit_j)`` over the others j, as log p differs from the logits by a
    number that is the same for all.
    """
    label_logits = logits.gather(2, labels.clamp(min=0)[..., None])
    soft_logits = logits.gather(2, soft_targets.rows - 1)
    return losses + (soft_targets.weights.to(logits.dtype) * (label_logits - soft_logits)).sum(2)


def sampled_cross_entropy(
    hidden: Tensor, item_table: Tensor, targets: Tensor, negatives: Tensor
) -> Tensor:
    """Sampled softmax: the target competes with a sample of the rows instead of with all.

    The logits of the sample are raised by log(V' / n), which makes the sum of exponentials unbiased
    (Bengio and Senecal 2008); a negative that is a position's target does not count twice. With all
    rows drawn this is :func:`next_item_cross_entropy`.

    Args:
        hidden: What each position expects (B, L, D).
        item_table: Item table (V' + 1, D), padding first.
        targets: Row numbers (B, L), 0 where there is none.
        negatives: Row numbers (n,) drawn uniformly without replacement from 1 .. V', shared by all
            positions.

    Returns:
        A scalar.
    """
    is_real = targets > 0
    real_hidden, target_rows = hidden[is_real], targets[is_real]
    positive_logits = (real_hidden * item_table[target_rows]).sum(-1, keepdim=True)
    negative_logits = real_hidden @ item_table[negatives].T + math.log(
        (len(item_table) - 1) / len(negatives)
    )
    negative_logits = negative_logits.masked_fill(target_rows[:, None] == negatives, -torch.inf)
    labels = torch.zeros_like(target_rows)
    return F.cross_entropy(torch.cat([positive_logits, negative_logits], dim=1), labels)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``inputs @ table.T``: inputs (T, D), table (V, D).

    The target distribution is sparse: ``weights`` (T, N) on the ``columns`` (T, N), which may name
    one twice.

    Both gradients are made with the loss, a chunk at a time: only (CHUNK, V) logits are in memory,
    and nothing is computed twice. Once differentiable.
    """

    @staticmethod
    def forward(
        inputs: Tensor, item_table: Tensor, columns: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_inputs, grad_table = torch.empty_like(inputs), torch.zeros_like(item_table)
        total_loss = inputs.new_zeros(())
        for chunk_rows in (
            slice(chunk_start, chunk_start + CHUNK) for chunk_start in range(0, len(columns), CHUNK)
        ):
            chunk_inputs = inputs[chunk_rows]
            chunk_columns = columns[chunk_rows]
            chunk_weights = weights[chunk_rows]
            log_probs = torch.log_softmax(product(chunk_inputs, item_table.T), dim=1)
            total_loss -= (chunk_weights * log_probs.gather(1, chunk_columns)).sum()
            grad_logits = log_probs.exp_().scatter_add_(1, chunk_columns, -chunk_weights)
            grad_inputs[chunk_rows] = product(grad_logits, item_table)
            add_product(grad_table, grad_logits.T, chunk_inputs)
        num_targets = len(columns)
        return total_loss / num_targets, grad_inputs.div_(num_targets), grad_table.div_(num_targets)

    @staticmethod
    def setup_context(ctx: Any, _inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_inputs, grad_table = ctx.saved_tensors
        return grads[0] * grad_inputs, grads[0] * grad_table, None, None


def proximal(params: Params, anchor_params: Params, strength: float) -> Tensor:
    """FedProx: strength / 2 * squared distance to the parameters received (Li et al. 2020)."""
    squared_gaps = [
        (params[tensor_name] - anchor_params[tensor_name]).square().sum()
        for tensor_name in anchor_params
    ]
    return strength / 2 * torch.stack(squared_gaps).sum()


def keep_local(params: Params, previous_params: Params, masks: Masks, strength: float) -> Tensor:
    """Dynamic magnitude loss, the anchor to localized preferences.

    ``strength / 2 * sum_j M_j (theta_j - theta_k_old_j)^2`` over the masked coordinates.
    """
    squared_gaps = [
        (masks[tensor_name] * (params[tensor_name] - previous_params[tensor_name])).square().sum()
        for tensor_name in previous_params
    ]
    return strength / 2 * torch.stack(squared_gaps).sum()


def magnitude(
    params: Params, shared_params: Params, masks: Masks, *, norm: float, strength: float, side: str
) -> Tensor:
    """Dynamic magnitude loss, the shared part, whose change has the norm C_t = ``norm`` as a bound.

    ``strength / 2 * max(0, || (1 - M)(theta - theta_g) ||_2 - C_t)^2``; with ``side`` "both" in
    place of "above" without the maximum (FedDPA): a smaller change is pulled up to C_t as well.
    """
    shared_changes = [
        (~masks[tensor_name] * (params[tensor_name] - shared_params[tensor_name])).reshape(-1)
        for tensor_name in shared_params
    ]
    change_norm: Tensor = torch.linalg.vector_norm(torch.cat(shared_changes))
    excess = change_norm - norm
    return strength / 2 * (excess.relu() if side == "above" else excess).square()
