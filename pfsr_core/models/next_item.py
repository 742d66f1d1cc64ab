"""Next-item model: item table, sequence encoder, dot-product head.

``logits = encoder(norm(dropout(E[items]))) E^T`` (Mamba4Rec, with any encoder). The encoder is
causal and histories are padded on the right, so no attention mask is needed: padding comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from pfsr_core.models.dropout import Dropout, Noise, noise_width
from pfsr_core.models.layout import layout_of
from pfsr_core.params import Params

ITEMS = "items.weight"
PROJECTION = "item_projection"  # (D, S): public item vectors to item vectors
RESIDUAL = "item_residual"  # (n + 1, D): what a client adds to the rows of its own items
ROW_NAMES = (ITEMS, RESIDUAL)  # a row for each item, the padding row first


class Apply(Protocol):
    """A next-item model as a function of its parameters."""

    def __call__(
        self, params: Params, items: Tensor, bits: Tensor | None, times: Tensor | None = None
    ) -> Tensor:
        """As :meth:`NextItemModel.forward`."""


class NextItemModel(nn.Module):
    """``items``: table (V + 1, D), row 0 is padding. ``encoder``: causal, keeps (B, L, D).

    ``reads_times``: whether the encoder makes use of the times of interactions.
    """

    def __init__(
        self, num_items: int, embedding_dim: int, encoder: nn.Module, dropout: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, embedding_dim, padding_idx=0)
        self.norm = nn.LayerNorm(embedding_dim)
        self.dropout = Dropout(dropout, embedding_dim)
        self.encoder = encoder
        self.noise_width = noise_width(self.dropout, encoder)
        self.reads_times = bool(getattr(encoder, "reads_times", False))

    def forward(
        self, items: Tensor, bits: Tensor | None = None, times: Tensor | None = None
    ) -> Tensor:
        """Item codes (B, L), right-padded with 0 -> what each position expects next (B, L, D).

        ``bits`` (B, L, noise_width) int16: random bits for dropout; None for none. ``times``
        (B, L), whole seconds: only for an encoder that reads them, None where they are not known.
        Outputs at padded places mean nothing.
        """
        layout = layout_of(items) if getattr(self.encoder, "packs", False) else None
        if layout is None:
            noise = None if bits is None else Noise(bits)
            known = () if times is None else (times,)
            hidden: Tensor = self.encoder(self._embed(items, noise), noise, *known)
            return hidden
        noise = None if bits is None else Noise(layout.pack(bits))
        embedded = self._embed(items.flatten()[layout.index], noise)
        return layout.pad(self.encoder(embedded, noise, layout))

    def _embed(self, items: Tensor, noise: Noise | None) -> Tensor:
        embedded: Tensor = self.norm(self.dropout(self.items(items), noise))
        return embedded


def make_apply(model: nn.Module) -> Apply:
    """``apply(params, items, bits, times)``: a next-item model as a function of its parameters."""

    def apply(
        params: Params, items: Tensor, bits: Tensor | None, times: Tensor | None = None
    ) -> Tensor:
        known = () if times is None else (times,)
        hidden: Tensor = functional_call(model, params, (items, bits, *known), strict=True)
        return hidden

    return apply


def pad_right(histories: Sequence[NDArray[np.int64]], max_length: int) -> tuple[Tensor, Tensor]:
    """The last ``max_length`` items of each history: codes (B, L) and lengths (B,).

    L is the longest of them, at least 1, so that short batches stay cheap.
    """
    cut = [history[-max_length:] for history in histories]
    lengths = torch.tensor([len(history) for history in cut])
    items = torch.zeros(len(cut), max(1, *(len(history) for history in cut)), dtype=torch.long)
    for row, history in enumerate(cut):
        items[row, : len(history)] = torch.from_numpy(history)
    return items, lengths


def pad_times(times: Sequence[NDArray[np.int64]], items: Tensor) -> Tensor:
    """Seconds of the last interactions of each history, where :func:`pad_right` put its items.

    ``times``: of whole histories, or of none. ``items`` (B, L) as padded; (B, L) too, 0 elsewhere.
    """
    padded = torch.zeros_like(items)
    for row, known in enumerate(times):
        last = torch.from_numpy(known[-items.shape[1] :])
        padded[row, : len(last)] = last
    return padded
