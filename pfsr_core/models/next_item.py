"""Next-item model: item table, compressor, sequence encoder, dot-product head.

``logits = encoder(norm(dropout(E[items]))) E^T`` (Mamba4Rec, with any encoder). The encoder is
causal and histories are padded on the right, so no attention mask is needed: padding comes later.
The compressor decides what of a history the encoder is given.
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
        model_params: Params,
        item_codes: Tensor,
        dropout_bits: Tensor | None,
        item_times: Tensor | None = None,
        sequence_context: SequenceContext | None = None,
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
        dropout_rate: float,
        compressor: Compressor | None = None,
    ) -> None:
        """A model over ``num_items`` = V items.

        Args:
            num_items: V, items without the padding row.
            embedding_dim: D, width of an item vector.
            encoder: Maps (B, L, D) to (B, L, D).
            dropout_rate: Probability that an entry of an item vector is dropped.
            compressor: What the encoder is given of a history; None for all of it.
        """
        super().__init__()
        self.items = nn.Embedding(num_items + 1, embedding_dim, padding_idx=0)
        self.norm = nn.LayerNorm(embedding_dim)
        self.dropout = Dropout(dropout_rate, embedding_dim)
        self.encoder = encoder
        self.compressor: Compressor = compressor or WholeHistory()
        self.noise_width = noise_width(self.dropout, encoder)
        self.reads_times = encoder.reads_times

    def forward(
        self,
        item_codes: Tensor,
        dropout_bits: Tensor | None = None,
        item_times: Tensor | None = None,
        sequence_context: SequenceContext | None = None,
    ) -> Tensor:
        """Item codes to what each position expects next.

        Args:
            item_codes: Item codes (B, L), right-padded with 0.
            dropout_bits: Random bits (B, num_memory_tokens + L, noise_width) int16, those of the
                memory tokens first; None for no dropout.
            item_times: Whole seconds (B, L), only for an encoder that reads them; None where they
                are not known.
            sequence_context: Where each sequence is split, and whose it is; without it, whole
                histories of unknown users.

        Returns:
            Vectors (B, L, D); those at padded positions mean nothing.
        """
        packed_batch = find_packing(item_codes) if self.encoder.packs else None
        if sequence_context is None:
            history_lengths = (item_codes > 0).sum(1)
            split_at = self.compressor.split_points(history_lengths)
            sequence_context = SequenceContext(split_at, torch.zeros_like(history_lengths))
        if packed_batch is None:
            noise = item_noise = None
            if dropout_bits is not None:
                item_noise = Noise(dropout_bits[:, self.compressor.num_memory_tokens :])
                noise = Noise(dropout_bits)
                noise.take(self.dropout.noise_width)
            item_vectors = self.embed(item_codes, item_noise)
            return self.compressor(
                self.encoder,
                item_vectors,
                noise,
                None,
                sequence_context=sequence_context,
                item_times=item_times,
            )
        noise = None if dropout_bits is None else Noise(packed_batch.pack(dropout_bits))
        item_vectors = self.embed(item_codes.flatten()[packed_batch.index], noise)
        hidden_states = self.compressor(
            self.encoder,
            item_vectors,
            noise,
            packed_batch,
            sequence_context=sequence_context,
            item_times=None,
        )
        return packed_batch.pad(hidden_states)

    def embed(self, item_codes: Tensor, noise: Noise | None = None) -> Tensor:
        """Item codes (...) to (..., D), as the encoder reads them."""
        item_vectors: Tensor = self.norm(self.dropout(self.items(item_codes), noise))
        return item_vectors

    def compress(
        self, item_codes: Tensor, user_rows: Tensor, item_times: Tensor | None = None
    ) -> State:
        """The memory of the first items of each history: see :class:`MemoryCompressor`.

        Args:
            item_codes: (B, P); P may be 0.
            user_rows: Rows of the tensor of users (B,).
            item_times: Seconds (B, P), None where they are not known.
        """
        assert isinstance(self.compressor, MemoryCompressor)
        return self.compressor.compress(self.encoder, self.embed(item_codes), user_rows, item_times)

    def continue_from(
        self, item_codes: Tensor, memory_state: State, item_times: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The prediction after the items that follow a memory.

        Args:
            item_codes: (B, R).
            memory_state: As :meth:`compress` returns it.
            item_times: Seconds (B, R), None where they are not known.

        Returns:
            What is expected next (B, D), and the next memory.
        """
        assert isinstance(self.compressor, MemoryCompressor)
        return self.compressor.continue_from(
            self.encoder, self.embed(item_codes), memory_state, item_times
        )


def make_apply(model: nn.Module) -> Apply:
    """The model as a function of its parameters and of what ``forward`` takes."""

    def apply(
        model_params: Params,
        item_codes: Tensor,
        dropout_bits: Tensor | None,
        item_times: Tensor | None = None,
        sequence_context: SequenceContext | None = None,
    ) -> Tensor:
        model_inputs = (item_codes, dropout_bits, item_times, sequence_context)
        hidden_states: Tensor = functional_call(model, model_params, model_inputs, strict=True)
        return hidden_states

    return apply


def make_serving(model: NextItemModel) -> tuple[Compress, ContinueFrom]:
    """``compress`` and ``continue_from`` of a model as functions of its parameters."""
    compress, continue_from = (_Method(model, name) for name in ("compress", "continue_from"))

    def compressed(
        model_params: Params, item_codes: Tensor, user_rows: Tensor, item_times: Tensor | None
    ) -> State:
        memory_state: State = functional_call(
            compress, _inside(model_params), (item_codes, user_rows, item_times)
        )
        return memory_state

    def continued(
        model_params: Params, item_codes: Tensor, memory_state: State, item_times: Tensor | None
    ) -> tuple[Tensor, State]:
        hidden_and_memory: tuple[Tensor, State] = functional_call(
            continue_from, _inside(model_params), (item_codes, memory_state, item_times)
        )
        return hidden_and_memory

    return compressed, continued


class _Method(nn.Module):
    """One of a module's methods as a module, because only such can be called with parameters."""

    def __init__(self, model: nn.Module, method_name: str) -> None:
        super().__init__()
        self.model, self.name = model, method_name

    def forward(self, *inputs: object) -> object:
        return getattr(self.model, self.name)(*inputs)


def _inside(model_params: Params) -> Params:
    return {f"model.{name}": tensor for name, tensor in model_params.items()}
