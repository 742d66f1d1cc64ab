"""Compressors: what of a long history an encoder reads, and what serving stores of the rest.

    identity   the latest ``max_length`` items, read anew every time
    tokens     K learned tokens stand for the old items, the recent ones are read (attention)
    state      the recurrent state after the last item, whatever came before it (recurrent)

Tokens: PerSRec (arXiv 2601.03479). One sequence [old items | K tokens | recent items]; tokens see
the old items, recent items see the tokens and not the old items. Trained in one parallel pass with
a random split between old and recent, so that one model serves caches of any age. What later items
see of the tokens, their keys and values, is all that serving keeps of the old part.

State: of a recurrent or state-space encoder the state after an item is exact, whatever its length.

Both may have a private part, a row for each of a client's users that starts at zero: what is added
to the learned tokens, or the state before the first item. Row 0 is that of an unknown user, and
zero.

Letters in shapes: B rows, L length, D width, K tokens, U users of a client.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from pfsr_core.models.encoders.attention_masks import (
    AttentionEncoder,
    plan_after_tokens,
    plan_around_tokens,
    time_of_tokens,
)
from pfsr_core.models.encoders.base import RecurrentEncoder, SequenceEncoder, State
from pfsr_core.models.ops.dropout import Noise
from pfsr_core.models.ops.packed_sequences import PackedSequences
from pfsr_core.params import Params

USERS = "compressor.users"  # a row for each user of a client, an unknown user's first
COVERED = "covered"  # (B,): of a memory, the items of the history that it stands for
TIME = "time"  # (B,): seconds of the last item that the tokens stand for
STEPS = 8  # items up to which a state goes on step by step: more are faster all at once
HIDDEN = "hidden"  # (B, D): what is expected after the last of them


class SequenceContext(NamedTuple):
    """Per-sequence data of a batch besides the items; (B,) each.

    ``split_at``: how many of the first items are old, before the memory tokens. ``user_rows``: rows
    of the tensor of users.
    """

    split_at: Tensor
    user_rows: Tensor


class Compressor(nn.Module):
    """How a model reads a history.

    Calling it takes ``(encoder, x, noise, packed_batch, *, sequence_context, item_times)`` and maps
    x (B, L, D), packed where there is a ``packed_batch``, to the prediction of each position, in
    the same shape. ``item_times`` (B, L) are for an encoder that reads them.

    Attributes:
        num_memory_tokens: Positions that it adds before the items of each row.
    """

    num_memory_tokens: int = 0

    if TYPE_CHECKING:  # what nn.Module leaves untyped

        def __call__(self, *inputs: Any, **named: Any) -> Tensor:
            """Outputs of the module."""

    def split_points(self, history_lengths: Tensor) -> Tensor:
        """Number of old items of each history outside training.

        Args:
            history_lengths: Items of each history (B,).

        Returns:
            Items before the memory tokens (B,).
        """
        raise NotImplementedError

    def window_start(self, history_length: int, max_length: int) -> int:
        """Index of the first item that the encoder reads.

        Args:
            history_length: Items of the history.
            max_length: The most items that the encoder reads at once.
        """
        raise NotImplementedError


class MemoryCompressor(Compressor):
    """A compressor that can serve from a stored memory of a user's history.

    ``encoder``: of the kind that the compressor was made for.
    """

    def memory_length(self, history_length: int, covered_length: int | None) -> int:
        """How many items of a history a memory must cover to continue from it.

        Args:
            history_length: Items of the history.
            covered_length: Items that a stored memory covers, None without one. The stored memory
                can be used where the result is this number.
        """
        raise NotImplementedError

    def compress(
        self, encoder: Any, x: Tensor, user_rows: Tensor, item_times: Tensor | None
    ) -> State:
        """The memory of a prefix of each history.

        Args:
            encoder: Of the kind that the compressor was made for.
            x: Embedded items (B, P, D); P may be 0.
            user_rows: Rows of the tensor of users (B,).
            item_times: Seconds (B, P), None where they are not known.

        Returns:
            Tensors whose first dimension is B.
        """
        raise NotImplementedError

    def continue_from(
        self, encoder: Any, x: Tensor, memory_state: State, item_times: Tensor | None
    ) -> tuple[Tensor, State]:
        """The prediction after the items that follow a memory, and the memory after them.

        Args:
            encoder: Of the kind that the compressor was made for.
            x: Embedded items that follow (B, R, D).
            memory_state: As :meth:`compress` gives it.
            item_times: Seconds (B, R), None where they are not known.

        Returns:
            The output at the last item (B, D), and the next memory.
        """
        raise NotImplementedError


def latest_start(history_length: int, max_length: int) -> int:
    """Index of the first of the latest ``max_length`` items of a history."""
    return max(0, history_length - max_length)


class WholeHistory(Compressor):
    """The latest items, all of them seen by the encoder."""

    def forward(
        self,
        encoder: SequenceEncoder,
        x: Tensor,
        noise: Noise | None,
        packed_batch: PackedSequences | None,
        *,
        item_times: Tensor | None,
        **_unread: object,
    ) -> Tensor:
        """The encoder's outputs for all items: see :class:`Compressor`."""
        extra_inputs = [
            part for part in (packed_batch, item_times) if part is not None
        ]  # never both
        return encoder(x, noise, *extra_inputs)

    def split_points(self, history_lengths: Tensor) -> Tensor:
        """No item is old: zeros (B,)."""
        return torch.zeros_like(history_lengths)

    def window_start(self, history_length: int, max_length: int) -> int:
        """The latest ``max_length`` items are read."""
        return latest_start(history_length, max_length)


class LearnedTokens(MemoryCompressor):
    """K tokens in place of the old items. ``recent``: R, the most items that stay uncompressed.

    The split follows from the history's length alone and moves by R / 2 at a time, so that a memory
    serves that many new items, and answers do not depend on when it was made.
    """

    def __init__(
        self, embedding_dim: int, num_tokens: int, max_recent: int, per_user: bool
    ) -> None:
        """Tokens for sequences of width ``embedding_dim``.

        Args:
            embedding_dim: D, width of an item vector.
            num_tokens: K, number of memory tokens.
            max_recent: R, number of items that may stay uncompressed.
            per_user: Whether each user of a client has an offset (K, D) of its own.
        """
        super().__init__()
        self.num_memory_tokens, self.recent = num_tokens, max_recent
        self.stride = max_recent - max_recent // 2
        self.tokens = nn.Parameter(torch.randn(num_tokens, embedding_dim))
        self.users = nn.Parameter(torch.zeros(1, num_tokens, embedding_dim)) if per_user else None

    def forward(
        self,
        encoder: AttentionEncoder,
        x: Tensor,
        noise: Noise | None,
        _packed_batch: PackedSequences | None,
        *,
        sequence_context: SequenceContext,
        item_times: Tensor | None,
    ) -> Tensor:
        """The encoder's outputs for the items, without those of the tokens."""
        plan = plan_around_tokens(
            sequence_context.split_at, x.shape[1], self.num_memory_tokens, item_times
        )
        tokens_and_items = torch.cat([self._tokens_of(sequence_context.user_rows), x], 1)
        return encoder(tokens_and_items, noise, plan=plan)[:, self.num_memory_tokens :]

    def split_points(self, history_lengths: Tensor) -> Tensor:
        """The number of old items, a multiple of the stride: (B,)."""
        excess_length = (history_lengths - self.recent).clamp(min=0)
        return -(-excess_length // self.stride) * self.stride

    def window_start(self, history_length: int, max_length: int) -> int:
        """The old items that are read are those before the split, as many as fit."""
        return max(0, self.memory_length(history_length) - (max_length - self.recent))

    def memory_length(self, history_length: int, _covered_length: int | None = None) -> int:
        """The split point of the history, whatever memory is at hand."""
        return int(self.split_points(torch.tensor(history_length)))

    def compress(
        self, encoder: AttentionEncoder, x: Tensor, user_rows: Tensor, item_times: Tensor | None
    ) -> State:
        """Keys and values of the tokens after the old items x (B, P, D): see the base class."""
        split_at = torch.full((len(x),), x.shape[1], device=x.device)
        plan = plan_around_tokens(split_at, x.shape[1], self.num_memory_tokens, item_times)
        tokens_and_items = torch.cat([self._tokens_of(user_rows), x], 1)
        token_times = {} if item_times is None else {TIME: time_of_tokens(split_at, item_times)}
        return {
            COVERED: split_at,
            **token_times,
            **encoder.build_kv_cache(tokens_and_items, plan, self.num_memory_tokens),
        }

    def continue_from(
        self, encoder: AttentionEncoder, x: Tensor, memory_state: State, item_times: Tensor | None
    ) -> tuple[Tensor, State]:
        """The last of the recent items x (B, R, D), and the same memory: see the base class."""
        token_times = memory_state.get(TIME)
        plan = plan_after_tokens(
            memory_state[COVERED], x.shape[1], self.num_memory_tokens, token_times, item_times
        )
        return encoder.decode(x, plan, memory_state), memory_state

    def _tokens_of(self, user_rows: Tensor) -> Tensor:
        """The tokens of ``user_rows`` (B,): (B, K, D)."""
        if self.users is None:
            return self.tokens.expand(len(user_rows), -1, -1)
        return self.tokens + self.users[user_rows]


class RecurrentState(MemoryCompressor):
    """The encoder's own state: all of a history is read, and none of it twice."""

    def __init__(self, encoder: RecurrentEncoder, per_user: bool) -> None:
        """A compressor for the states of ``encoder``.

        Args:
            encoder: Whose state is kept; it is not held here.
            per_user: Whether each user of a client has a first state of its own.
        """
        super().__init__()
        self.users = None
        if per_user:
            state_size = sum(part.numel() for part in encoder.initial_state(1).values())
            self.users = nn.Parameter(torch.zeros(1, state_size))

    def forward(
        self,
        encoder: RecurrentEncoder,
        x: Tensor,
        noise: Noise | None,
        packed_batch: PackedSequences | None,
        *,
        sequence_context: SequenceContext,
        **_unread: object,
    ) -> Tensor:
        """The encoder's outputs, from the users' first states on where they have some."""
        first_state = (
            None if self.users is None else self._start(encoder, sequence_context.user_rows)
        )
        return encoder(x, noise, packed_batch, first_state)

    def split_points(self, history_lengths: Tensor) -> Tensor:
        """No item is old: zeros (B,)."""
        return torch.zeros_like(history_lengths)

    def window_start(self, _history_length: int, _max_length: int) -> int:
        """All of a history is read."""
        return 0

    def memory_length(self, history_length: int, covered_length: int | None) -> int:
        """What the memory at hand stands for, where the history is no shorter; else 0."""
        if covered_length is None or covered_length > history_length:
            return 0
        return covered_length

    def compress(
        self, encoder: RecurrentEncoder, x: Tensor, user_rows: Tensor, _item_times: Tensor | None
    ) -> State:
        """The state after x (B, P, D), and the output of the last item: see the base class."""
        zero_output = torch.zeros_like(x[:, :0].sum(1))
        first_state = {**self._start(encoder, user_rows), HIDDEN: zero_output}
        first_state[COVERED] = torch.zeros(len(x), dtype=torch.long)
        return self.continue_from(encoder, x, first_state)[1]

    def continue_from(
        self,
        encoder: RecurrentEncoder,
        x: Tensor,
        memory_state: State,
        _item_times: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """The output after x (B, R, D) and the state there: see the base class.

        Few items are taken step by step, more of them all at once.
        """
        hidden_state, covered_length = memory_state[HIDDEN], memory_state[COVERED] + x.shape[1]
        encoder_state = {
            name: t for name, t in memory_state.items() if name not in (HIDDEN, COVERED)
        }
        if x.shape[1] > STEPS:
            hidden_states, encoder_state = encoder.forward_from(x, encoder_state)
            hidden_state = hidden_states[:, -1]
        else:
            for item_vector in x.unbind(1):
                hidden_state, encoder_state = encoder.step(item_vector, encoder_state)
        return hidden_state, {**encoder_state, HIDDEN: hidden_state, COVERED: covered_length}

    def _start(self, encoder: RecurrentEncoder, user_rows: Tensor) -> State:
        """The states before the first items of ``user_rows`` (B,)."""
        encoder_state = encoder.initial_state(len(user_rows))
        if self.users is None:
            return encoder_state
        tensor_sizes = [part[0].numel() for part in encoder_state.values()]
        user_parts = self.users[user_rows].split(tensor_sizes, dim=1)
        tensor_pairs = zip(encoder_state.items(), user_parts, strict=True)
        return {name: part.view(zero.shape) for (name, zero), part in tensor_pairs}


@dataclass(frozen=True)
class UserMemory:
    """A compressed history. ``covered``: how many of its first items it stands for."""

    covered: int
    tensors: Params
