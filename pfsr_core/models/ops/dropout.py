"""Dropout from bits that the caller brings: the same bits, the same masks, in a batch or not.

``nn.Dropout`` draws from a global generator in the order in which layers happen to run, so a client
trained alone and the same client trained in a batch of clients would get different masks. Here a
pass receives its random bits as a tensor (B, L, M), and every layer takes its share of the last
dimension in turn. M is the sum of the layers' ``noise_width``. It is faster as well: on a CPU the
mask of ``nn.Dropout`` costs as much as the product behind it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 2**16  # a mask compares 16 random bits with a threshold


class Noise:
    """The bits of one forward pass, ``bits`` (B, L, M) int16, handed out from left to right."""

    def __init__(self, bits: Tensor) -> None:
        """Bits (B, L, M), of which none is taken yet."""
        self.bits, self.used = bits, 0

    def take(self, width: int) -> Tensor:
        """The next ``width`` columns: (B, L, width). Raises ValueError when there are none left."""
        end = self.used + width
        if end > self.bits.shape[-1]:
            raise ValueError(
                f"noise of width {self.bits.shape[-1]} for a model that takes at least {end}: "
                "draw it with the model's noise_width"
            )
        part = self.bits[..., self.used : end]
        self.used = end
        return part


class Dropout(nn.Module):
    """Zeroes each entry with probability ``p`` and scales the others by 1 / (1 - p).

    ``p`` is held to a multiple of 1 / 65536. ``width``: size of the last dimension of what it is
    applied to. Without noise, or with p = 0, it is the identity.
    """

    def __init__(self, p: float, width: int) -> None:
        """Dropout of inputs (B, L, width) with probability ``p``."""
        super().__init__()
        self.dropped = round(p * LEVELS)
        self.noise_width = width if self.dropped else 0

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """(B, L, width) to (B, L, width)."""
        if noise is None or not self.dropped:
            return x
        return x * self.mask(noise.take(self.noise_width), x.dtype)

    def mask(self, bits: Tensor, dtype: torch.dtype) -> Tensor:
        """0 or 1 / (1 - p) for every one of ``bits``, in their shape."""
        kept = (bits >= self.dropped - LEVELS // 2).to(dtype)
        return kept * (LEVELS / (LEVELS - self.dropped))


def draw_bits(shape: tuple[int, ...], generator: np.random.Generator) -> Tensor:
    """Uniform random bits as int16, of any shape."""
    count = int(np.prod(shape))
    words = generator.bit_generator.random_raw(-(-count // 4))
    return torch.from_numpy(words.view(np.int16)[:count].reshape(shape))


class TakesNoise(Protocol):
    """A module with dropout in it."""

    noise_width: int


def noise_width(*modules: TakesNoise) -> int:
    """Columns of noise that these modules take together."""
    return sum(module.noise_width for module in modules)
