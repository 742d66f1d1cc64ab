"""What the attention encoders share: heads, caches of what was seen, and how long a history may be.

Letters in shapes: B batch, L length, D width, H heads, K = D / H, M = max_length.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_heads(model_dim: int, num_heads: int) -> None:
    """Checks that heads of one width fill ``model_dim``.

    Raises:
        ValueError: ``num_heads`` does not divide it.
    """
    if model_dim % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide embedding_dim={model_dim}: choose a divisor"
        )


def check_length(encoder_name: str, seq_length: int, max_length: int) -> None:
    """Checks that a sequence fits into an encoder.

    Args:
        encoder_name: Name in the message.
        seq_length: Interactions of the sequence.
        max_length: The most that the encoder was built for.

    Raises:
        ValueError: It does not fit.
    """
    if seq_length > max_length:
        raise ValueError(
            f"{encoder_name} was built for max_length={max_length} interactions and got"
            f" {seq_length}: keep the latest {max_length}, or build it with a larger max_length"
        )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, L, D) to (B, H, L, K)."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def insert(kv_cache: Tensor, new_row: Tensor, position: Tensor) -> Tensor:
    """Writes one position into a cache of keys or values, not in place.

    Args:
        kv_cache: Keys or values (B, H, M, K).
        new_row: Those of the new position (B, H, 1, K).
        position: Slot to write, for each row (B,).

    Returns:
        The new cache (B, H, M, K).
    """
    cache_slots = torch.arange(kv_cache.shape[2], device=position.device)
    at_position = cache_slots == position.unsqueeze(1)
    return torch.where(at_position[:, None, :, None], new_row, kv_cache)


def seen(position: Tensor, max_length: int) -> Tensor:
    """Mask of the cache slots that a new position attends to.

    Args:
        position: The new position of each row (B,).
        max_length: M, slots of a cache.

    Returns:
        True for slots up to the position (B, 1, 1, M).
    """
    cache_slots = torch.arange(max_length, device=position.device)
    return (cache_slots <= position.unsqueeze(1))[:, None, None, :]
