"""What a model must know of ``torch.func``: whether it is mapped, and over what."""

from __future__ import annotations

import torch
from torch import Tensor


def is_transformed() -> bool:
    """Whether this runs under ``torch.func``: shapes are those of one client of many then."""
    return torch._C._are_functorch_transforms_active()


def mapped_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``tensor`` with the mapped dimension ``dim`` first; expanded to ``size`` where it is None."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
