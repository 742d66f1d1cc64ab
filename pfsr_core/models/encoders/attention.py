"""What the attention encoders share: heads, caches of what was seen, and how long a history may be.

Letters in shapes: B batch, L length, D width, H heads, K = D / H, M = max_length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ``ValueError`` when ``num_heads`` does not divide ``dim``."""
    if dim % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide embedding_dim={dim}: choose a divisor"
        )


def check_length(encoder: str, length: int, max_length: int) -> None:
    """Raises ``ValueError`` when ``length`` interactions are more than ``max_length``."""
    if length > max_length:
        raise ValueError(
            f"{encoder} was built for max_length={max_length} interactions and got {length}:"
            f" keep the latest {max_length}, or build it with a larger max_length"
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, D) to (B, H, L, K)."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def insert(cache: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """``cache`` (B, H, M, K) with ``row`` (B, H, 1, K) at ``position`` (B,); not in place."""
    here = _slots(cache.shape[2], position) == position.unsqueeze(1)
    return torch.where(here[:, None, :, None], row, cache)


def seen(position: Tensor, max_length: int) -> Tensor:
    """True for the slots that a query at ``position`` (B,) may look at: (B, 1, 1, M)."""
    return (_slots(max_length, position) <= position.unsqueeze(1))[:, None, None, :]


def _slots(max_length: int, position: Tensor) -> Tensor:
    return torch.arange(max_length, device=position.device)
