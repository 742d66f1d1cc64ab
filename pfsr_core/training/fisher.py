"""Which parameters matter to a client: empirical diagonal Fisher information, and masks from it.

    F_j = mean over samples of ( d log p(target) / d theta_j )^2

with the true next items as targets (the empirical form, as in FedDPA, Yang et al. 2023). Gradients
are per sample through ``torch.func``, never a mean that is squared afterwards.
Masks are boolean tensors: True means informative for this client, to be kept local.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from pfsr_core.params import Params

Masks = dict[str, Tensor]
LogProbability = Callable[..., Tensor]
"""(parameters, constants, prefix (L,), length (), target ()) -> log p(target), a scalar.

After the target come the prefix's times (L,) where the samples have some.
"""


class Samples(NamedTuple):
    """S prefixes of histories, each with the item that followed; of one client, or K stacked.

    Attributes:
        prefixes: Items (S, L), right-padded with 0.
        lengths: How many of them are items (S,).
        targets: The item that followed (S,).
        times: Of the prefixes (S, L), whole seconds; None for a model that reads none.
    """

    prefixes: Tensor
    lengths: Tensor
    targets: Tensor
    times: Tensor | None = None

    def pick(self, sample_rows: Tensor | slice) -> tuple[Tensor, ...]:
        """What there is of the samples at ``sample_rows``, cut to their longest."""
        lengths = self.lengths[..., sample_rows]
        longest = int(lengths.max())
        picked_tensors = (
            self.prefixes[..., sample_rows, :longest],
            lengths,
            self.targets[..., sample_rows],
        )
        return (
            picked_tensors
            if self.times is None
            else (*picked_tensors, self.times[..., sample_rows, :longest])
        )


def diagonal_fisher(
    log_probability: LogProbability,
    params: Params,
    constants: Params,
    samples: Samples,
    chunk_size: int = 32,
) -> Params:
    """Mean squared per-sample gradient of ``params``.

    The samples go through in chunks sorted by length, so that short prefixes do not pay for long
    ones.

    Args:
        log_probability: Of a target after a prefix.
        params: What the gradient is of.
        constants: What the log-probability depends on besides.
        samples: Of one client.
        chunk_size: Samples whose gradients are held at once.

    Returns:
        A tensor of the shape of each of ``params``.
    """
    length_order = torch.argsort(samples.lengths, stable=True)
    square_sums = {tensor_name: torch.zeros_like(tensor) for tensor_name, tensor in params.items()}
    for chunk_rows in length_order.split(chunk_size):
        sample = samples.pick(chunk_rows)
        per_sample = vmap(grad(log_probability), in_dims=(None, None, *[0] * len(sample)))
        sample_gradients = per_sample(params, constants, *sample)
        for tensor_name, sample_gradient in sample_gradients.items():
            square_sums[tensor_name] = square_sums[
                tensor_name
            ] + sample_gradient.detach().square().sum(0)
    return {
        tensor_name: tensor / max(1, len(length_order))
        for tensor_name, tensor in square_sums.items()
    }


def quantile_mask(fisher: Params, rho: float) -> Masks:
    """Marks the entries of each tensor with the largest Fisher information.

    Args:
        fisher: Fisher information by tensor name.
        rho: Share of a tensor's entries that are marked.

    Returns:
        Masks of the same shapes; entries without information are never marked.
    """
    return {tensor_name: _top(tensor, rho) for tensor_name, tensor in fisher.items()}


def minmax_mask(fisher: Params, threshold: float) -> Masks:
    """FedDPA's mask: entries of min-max scaled Fisher information above a threshold.

    Args:
        fisher: Fisher information by tensor name; every tensor is scaled by itself.
        threshold: In [0, 1].

    Returns:
        Masks of the same shapes; that of a constant tensor, whose scaling would be 0/0, is empty.
    """
    return {tensor_name: _above(tensor, threshold) for tensor_name, tensor in fisher.items()}


def empty_masks(params: Params) -> Masks:
    """Nothing is kept local."""
    return {
        tensor_name: torch.zeros_like(tensor, dtype=torch.bool)
        for tensor_name, tensor in params.items()
    }


def merge_by_mask(masks: Masks, local_params: Params, shared_params: Params) -> Params:
    """``M * local + (1 - M) * shared``, exactly: no arithmetic touches the values."""
    return {
        tensor_name: torch.where(
            masks[tensor_name], local_params[tensor_name], shared_params[tensor_name]
        )
        for tensor_name in shared_params
    }


def kept_share(masks: Masks) -> dict[str, float]:
    """Share of True entries by tensor, and over all under the empty name."""
    kept_shares = {tensor_name: float(mask.float().mean()) for tensor_name, mask in masks.items()}
    num_entries = sum(mask.numel() for mask in masks.values())
    kept_shares[""] = float(sum(int(mask.sum()) for mask in masks.values())) / max(1, num_entries)
    return kept_shares


def _top(fisher: Tensor, rho: float) -> Tensor:
    flat_fisher = fisher.reshape(-1)
    num_kept = round(rho * flat_fisher.numel())
    mask = torch.zeros_like(flat_fisher, dtype=torch.bool)
    mask[torch.topk(flat_fisher, num_kept, sorted=False).indices] = True
    return (mask & (flat_fisher > 0)).reshape(fisher.shape)


def _above(fisher: Tensor, threshold: float) -> Tensor:
    low, high = fisher.min(), fisher.max()
    if not bool(high > low):
        return torch.zeros_like(fisher, dtype=torch.bool)
    return (fisher - low) / (high - low) > threshold
