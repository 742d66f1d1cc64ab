"""Dropout from bits that the caller passes: the same bits, the same masks, in a batch or not.

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

    def __init__(self, dropout_bits: Tensor) -> None:
        """Bits (B, L, M), of which none is taken yet."""
        self.bits, self.used = dropout_bits, 0

    def take(self, num_columns: int) -> Tensor:
        """The next columns of bits.

        Args:
            num_columns: W, how many.

        Returns:
            Bits (B, L, W) that no other layer gets.

        Raises:
            ValueError: Fewer are left.
        """
        end_column = self.used + num_columns
        if end_column > self.bits.shape[-1]:
            raise ValueError(
                f"noise of width {self.bits.shape[-1]} for a model that takes at least"
                f" {end_column}: draw it with the model's noise_width"
            )
        taken_bits = self.bits[..., self.used : end_column]
        self.used = end_column
        return taken_bits


class Dropout(nn.Module):
    """Zeroes each entry with probability ``p`` and scales the others by 1 / (1 - p).

    ``p`` is rounded to a multiple of 1 / 65536. Without noise, or with p = 0, it is the identity.
    """

    def __init__(self, p: float, num_columns: int) -> None:
        """Dropout of inputs (B, L, num_columns) with probability ``p``."""
        super().__init__()
        self.dropped = round(p * LEVELS)
        self.noise_width = num_columns if self.dropped else 0

    def forward(self, x: Tensor, noise: Noise | None) -> Tensor:
        """Drops entries by the next columns of the noise.

        Args:
            x: Inputs (B, L, num_columns).
            noise: Random bits of this pass; None for no dropout.

        Returns:
            Outputs in the shape of x.
        """
        if noise is None or not self.dropped:
            return x
        return x * self.mask(noise.take(self.noise_width), x.dtype)

    def mask(self, dropout_bits: Tensor, dtype: torch.dtype) -> Tensor:
        """0 or 1 / (1 - p) for every one of ``dropout_bits``, in their shape."""
        keep_mask = (dropout_bits >= self.dropped - LEVELS // 2).to(dtype)
        return keep_mask * (LEVELS / (LEVELS - self.dropped))


def draw_bits(shape: tuple[int, ...], generator: np.random.Generator) -> Tensor:
    """Uniform random bits.

    Args:
        shape: Any shape.
        generator: Source of the bits.

    Returns:
        An int16 tensor of this shape.
    """
    num_bits = int(np.prod(shape))
    random_words = generator.bit_generator.random_raw(-(-num_bits // 4))
    return torch.from_numpy(random_words.view(np.int16)[:num_bits].reshape(shape))


class TakesNoise(Protocol):
    """A module with dropout in it."""

    noise_width: int


def noise_width(*modules: TakesNoise) -> int:
    """Columns of noise that these modules take together."""
    return sum(module.noise_width for module in modules)
