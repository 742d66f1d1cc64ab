"""Losses: cross-entropy over a client's candidates, and the terms added to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pfsr_core.fisher import Masks
from pfsr_core.params import Params


def next_item_cross_entropy(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next item at every real position.

    ``hidden`` (B, L, D), ``table`` (V' + 1, D), whose rows but the first, padding, all compete;
    ``targets`` (B, L) row numbers, 0 where there is none.
    """
    real = targets > 0
    logits = hidden[real] @ table[1:].T
    return F.cross_entropy(logits, targets[real] - 1)


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


def magnitude(  # noqa: PLR0913 - the terms of one formula
    params: Params,
    shared: Params,
    masks: Masks,
    norm: float,
    strength: float,
    side: str,
) -> Tensor:
    """Dynamic magnitude loss, the shared part, whose change has the norm C_t = ``norm`` as a bound.

    ``strength / 2 * max(0, || (1 - M)(theta - theta_g) ||_2 - C_t)^2``; with ``side`` "both" in
    place of "above" without the maximum (FedDPA): a smaller change is pulled up to C_t as well.
    """
    gaps = [(~masks[name] * (params[name] - shared[name])).reshape(-1) for name in shared]
    length: Tensor = torch.linalg.vector_norm(torch.cat(gaps))
    excess = length - norm
    return strength / 2 * (excess.relu() if side == "above" else excess).square()
