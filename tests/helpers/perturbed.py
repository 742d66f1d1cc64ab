"""Random starts that differ in their last bits, as those of another processor's arithmetic would.

No test may hang on rounding: which epoch a tiny validation set prefers, which of two nearly equal
scores is larger, the sum of a gradient that is zero. ``PFSR_TEST_PERTURBED=1e-7`` moves every
number that models and tests draw from torch, by up to that share of it. The same draw always
becomes the same number, so runs still repeat and engines still start alike.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[..., Tensor]


def perturb_starts(share: float) -> None:
    """For the rest of the process. Draws that become choices (``torch.rand``) stay as they are."""
    torch.randn = perturbed(torch.randn, share)
    for name in ("normal_", "uniform_"):
        setattr(Tensor, name, perturbed(getattr(Tensor, name), share))


def perturbed(draw: Draw, share: float) -> Draw:
    """``draw`` with each of its numbers moved by a share of it that the number itself decides."""

    @functools.wraps(draw)
    def moved(*args: object, **kwargs: object) -> Tensor:
        numbers = draw(*args, **kwargs)
        with torch.no_grad():
            return numbers.mul_(1 + share * torch.sin(1e4 * numbers))

    return moved
