"""Helpers for code that may run under ``torch.func``: is it mapped, and over which dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def is_transformed() -> bool:
    """Whether this runs under ``torch.func``: shapes are those of one client of many then."""
    return torch._C._are_functorch_transforms_active()


def mapped_first(tensor: Tensor, mapped_dim: int | None, mapped_size: int) -> Tensor:
    """Moves the mapped dimension of a tensor to the front, as a rule for ``vmap`` needs it.

    Args:
        tensor: An input of the mapped function.
        mapped_dim: Its mapped dimension; None where it is not mapped, and is expanded.
        mapped_size: Size of the mapped dimension.
    """
    if mapped_dim is None:
        return tensor.expand(mapped_size, *tensor.shape)
    return tensor.movedim(mapped_dim, 0)
