"""Next-item model: item table, compressor, sequence encoder, dot-product head.

``logits = encoder(norm(dropout(E[items]))) E^T`` (Mamba4Rec, with any encoder). The encoder is
causal and histories are padded on the right, so no attention mask is needed: padding comes later.
What of a history the encoder is given is the compressor's to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pfsr_core.models.compressors import Compressor, MemoryCompressor, SequenceContext, WholeHistory
from pfsr_core.models.encoders.base import SequenceEncoder, State
from pfsr_core.models.ops.dropout import Dropout, Noise, noise_width
from pfsr_core.models.ops.packed_sequences import find_packing
from pfsr_core.params import Params

Compress = Callable[[Params, Tensor, Tensor, Tensor | None], State]
"""(parameters, item codes (B, P), users (B,), times (B, P)) -> the memory"""
ContinueFrom = Callable[[Params, Tensor, State, Tensor | None], tuple[Tensor, State]]
"""(parameters, item codes (B, R), memory, times (B, R)) -> (B, D), the memory after them"""


class Apply(Protocol):
    """A next-item model as a function of its parameters."""

    def __call__(
        self,
        params: Params,
        items: Tensor,
        bits: Tensor | None,
        times: Tensor | None = None,
        context: SequenceContext | None = None,
    ) -> Tensor:
        """As :meth:`NextItemModel.forward`."""


class NextItemModel(nn.Module):
    """Item table, norm, compressor and encoder; the head is the table again.

    Attributes:
        items: Table (V + 1, D), row 0 is padding.
        encoder: Causal, (B, L, D) to (B, L, D).
        compressor: What the encoder is given of a history.
        noise_width: Random numbers that dropout takes at every position.
        reads_times: Whether the encoder makes use of the times of interactions.
    """

    def __init__(
        self,
        num_items: int,
        embedding_dim: int,
        encoder: SequenceEncoder,
        dropout: float,
        compressor: Compressor | None = None,
    ) -> None:
        """A model over ``num_items`` = V items.

        Args:
            num_items: V, items without the padding row.
            embedding_dim: D, width of an item vector.
            encoder: Maps (B, L, D) to (B, L, D).
            dropout: Probability that an entry of an item vector is dropped.
            compressor: What the encoder is given of a history; None for all of it.
        """
        super().__init__()
        self.items = nn.Embedding(num_items + 1, embedding_dim, padding_idx=0)
        self.norm = nn.LayerNorm(embedding_dim)
        self.dropout = Dropout(dropout, embedding_dim)
        self.encoder = encoder
        self.compressor: Compressor = compressor or WholeHistory()
        self.noise_width = noise_width(self.dropout, encoder)
        self.reads_times = encoder.reads_times

    def forward(
        self,
        items: Tensor,
        bits: Tensor | None = None,
        times: Tensor | None = None,
        context: SequenceContext | None = None,
    ) -> Tensor:
        """Item codes to what each position expects next.

        Args:
            items: Item codes (B, L), right-padded with 0.
            bits: Random bits for dropout (B, num_memory_tokens + L, noise_width) int16, those of
                the memory tokens first; None for no dropout.
            times: Whole seconds (B, L), only for an encoder that reads them; None where they are
                not known.
            context: Where each sequence is split, and whose it is; without it, whole histories of
                unknown users.

        Returns:
            Vectors (B, L, D); those at padded positions mean nothing.
        """
        packed = find_packing(items) if self.encoder.packs else None
        if context is None:
            lengths = (items > 0).sum(1)
            split_at = self.compressor.split_points(lengths)
            context = SequenceContext(split_at, torch.zeros_like(lengths))
        if packed is None:
            noise = of_items = None
            if bits is not None:
                of_items, noise = Noise(bits[:, self.compressor.num_memory_tokens :]), Noise(bits)
                noise.take(self.dropout.noise_width)
            embedded = self.embed(items, of_items)
            return self.compressor(
                self.encoder, embedded, noise, None, context=context, times=times
            )
        noise = None if bits is None else Noise(packed.pack(bits))
        embedded = self.embed(items.flatten()[packed.index], noise)
        hidden = self.compressor(self.encoder, embedded, noise, packed, context=context, times=None)
        return packed.pad(hidden)

    def embed(self, items: Tensor, noise: Noise | None = None) -> Tensor:
        """Item codes (...) to (..., D), as the encoder reads them."""
        embedded: Tensor = self.norm(self.dropout(self.items(items), noise))
        return embedded

    def compress(self, items: Tensor, users: Tensor, times: Tensor | None = None) -> State:
        """The memory of item codes (B, P): see :class:`MemoryCompressor`."""
        assert isinstance(self.compressor, MemoryCompressor)
        return self.compressor.compress(self.encoder, self.embed(items), users, times)

    def continue_from(
        self, items: Tensor, memory: State, times: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """What is expected after item codes (B, R) that follow a memory: (B, D), the new memory."""
        assert isinstance(self.compressor, MemoryCompressor)
        return self.compressor.continue_from(self.encoder, self.embed(items), memory, times)


def make_apply(model: nn.Module) -> Apply:
    """``apply(params, items, bits, times, context)``: the model as a function of its parameters."""

    def apply(
        params: Params,
        items: Tensor,
        bits: Tensor | None,
        times: Tensor | None = None,
        context: SequenceContext | None = None,
    ) -> Tensor:
        given = (items, bits, times, context)
        hidden: Tensor = functional_call(model, params, given, strict=True)
        return hidden

    return apply


def make_serving(model: NextItemModel) -> tuple[Compress, ContinueFrom]:
    """``compress`` and ``continue_from`` of a model as functions of its parameters."""
    compress, continue_from = (_Method(model, name) for name in ("compress", "continue_from"))

    def compressed(params: Params, items: Tensor, users: Tensor, times: Tensor | None) -> State:
        memory: State = functional_call(compress, _inside(params), (items, users, times))
        return memory

    def continued(
        params: Params, items: Tensor, memory: State, times: Tensor | None
    ) -> tuple[Tensor, State]:
        outcome: tuple[Tensor, State] = functional_call(
            continue_from, _inside(params), (items, memory, times)
        )
        return outcome

    return compressed, continued


class _Method(nn.Module):
    """One of a module's methods as a module, because only such can be called with parameters."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs: object) -> object:
        return getattr(self.model, self.name)(*inputs)


def _inside(params: Params) -> Params:
    return {f"model.{name}": tensor for name, tensor in params.items()}
