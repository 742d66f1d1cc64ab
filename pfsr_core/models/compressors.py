"""Compressors: what of a long history an encoder reads, and what serving remembers of the rest.

    identity   the latest ``max_length`` items, read anew every time
    tokens     K learned tokens stand for the old items, the recent ones are read (attention)
    state      the recurrent state after the last item, whatever came before it (recurrent)

Tokens: PerSRec (arXiv 2601.03479). One sequence [old items | K tokens | recent items]; tokens see
the old items, recent items see the tokens and not the old items. Trained in one parallel pass with
a random split between old and recent, so that one model serves caches of any age. What later items
see of the tokens, their keys and values, is all that serving keeps of the old part.

State: of a recurrent or state-space encoder the state after an item is exact, whatever its length.

Both may have a private part, a row for each of a client's users that starts at zero: what is added
to the learned tokens, or the state before the first item. Row 0 is that of a stranger, and zero.

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

USERS = "compressor.users"  # a row for each user of a client, a stranger's first
COVERED = "covered"  # (B,): of a memory, the items of the history that it stands for
TIME = "time"  # (B,): seconds of the last item that the tokens stand for
STEPS = 8  # items up to which a state goes on step by step: more are faster all at once
HIDDEN = "hidden"  # (B, D): what is expected after the last of them


class SequenceContext(NamedTuple):
    """What is known of the sequences of a batch besides their items; (B,) each.

    ``split_at``: how many of the first items are old, before the memory tokens. ``user_rows``: rows
    of the tensor of users.
    """

    split_at: Tensor
    user_rows: Tensor


class Compressor(nn.Module):
    """How a model reads a history.

    Calling it takes ``(encoder, x, noise, packed, *, context, times)``: x (B, L, D), packed where
    there is a ``packed``, to what each item expects next, in the same shape. ``times`` (B, L): for
    an encoder that reads them.

    Attributes:
        num_memory_tokens: Positions that it adds before the items of each row.
    """

    num_memory_tokens: int = 0

    if TYPE_CHECKING:  # what nn.Module leaves untyped

        def __call__(self, *inputs: Any, **named: Any) -> Tensor:
            """Outputs of the module."""

    def split_points(self, lengths: Tensor) -> Tensor:
        """How many of the first ``lengths`` items (B,) are old, once training is over: (B,)."""
        raise NotImplementedError

    def window_start(self, length: int, max_length: int) -> int:
        """The first item of a history of ``length`` that is read at all."""
        raise NotImplementedError


class MemoryCompressor(Compressor):
    """A compressor that can serve from what it remembers of a user.

    ``encoder``: of the kind that the compressor was made for.
    """

    def memory_length(self, length: int, covered: int | None) -> int:
        """How many items of a history a memory must stand for to go on from it.

        ``covered``: those of a memory that is at hand. It serves where the answer is the same.
        """
        raise NotImplementedError

    def compress(self, encoder: Any, x: Tensor, users: Tensor, times: Tensor | None) -> State:
        """The memory of embedded items x (B, P, D), P may be 0, of the ``users`` (B,)."""
        raise NotImplementedError

    def continue_from(
        self, encoder: Any, x: Tensor, memory: State, times: Tensor | None
    ) -> tuple[Tensor, State]:
        """What is expected after the items x (B, R, D) that follow: (B, D), and the new memory."""
        raise NotImplementedError


def latest_start(length: int, max_length: int) -> int:
    """The first item that is read of a history of ``length``: the latest ``max_length`` are."""
    return max(0, length - max_length)


class WholeHistory(Compressor):
    """The latest items, all of them seen by the encoder."""

    def forward(
        self,
        encoder: SequenceEncoder,
        x: Tensor,
        noise: Noise | None,
        packed: PackedSequences | None,
        *,
        times: Tensor | None,
        **_unread: object,
    ) -> Tensor:
        """The encoder's outputs for all items: see :class:`Compressor`."""
        known = [part for part in (packed, times) if part is not None]  # never both
        return encoder(x, noise, *known)

    def split_points(self, lengths: Tensor) -> Tensor:
        """No item is old: zeros (B,)."""
        return torch.zeros_like(lengths)

    def window_start(self, length: int, max_length: int) -> int:
        """The latest ``max_length`` items are read."""
        return latest_start(length, max_length)


class LearnedTokens(MemoryCompressor):
    """K tokens in place of the old items. ``recent``: R, the most items that stay uncompressed.

    The split follows from the history's length alone and moves by R / 2 at a time, so that a memory
    serves that many new items, and answers do not depend on when it was made.
    """

    def __init__(self, dim: int, tokens: int, recent: int, private: bool) -> None:
        """Tokens for sequences of width ``dim``.

        Args:
            dim: D, width of an item vector.
            tokens: K, number of memory tokens.
            recent: R, number of items that may stay uncompressed.
            private: Whether each user of a client has an offset (K, D) of its own.
        """
        super().__init__()
        self.num_memory_tokens, self.recent = tokens, recent
        self.stride = recent - recent // 2
        self.tokens = nn.Parameter(torch.randn(tokens, dim))
        self.users = nn.Parameter(torch.zeros(1, tokens, dim)) if private else None

    def forward(
        self,
        encoder: AttentionEncoder,
        x: Tensor,
        noise: Noise | None,
        _packed: PackedSequences | None,
        *,
        context: SequenceContext,
        times: Tensor | None,
    ) -> Tensor:
        """The encoder's outputs for the items, without those of the tokens."""
        plan = plan_around_tokens(context.split_at, x.shape[1], self.num_memory_tokens, times)
        whole = torch.cat([self._tokens_of(context.user_rows), x], 1)
        return encoder(whole, noise, plan=plan)[:, self.num_memory_tokens :]

    def split_points(self, lengths: Tensor) -> Tensor:
        """The number of old items, a multiple of the stride: (B,)."""
        beyond = (lengths - self.recent).clamp(min=0)
        return -(-beyond // self.stride) * self.stride

    def window_start(self, length: int, max_length: int) -> int:
        """The old items that are read are those before the split, as many as fit."""
        return max(0, self.memory_length(length) - (max_length - self.recent))

    def memory_length(self, length: int, _covered: int | None = None) -> int:
        """The split point of the history, whatever memory is at hand."""
        return int(self.split_points(torch.tensor(length)))

    def compress(
        self, encoder: AttentionEncoder, x: Tensor, users: Tensor, times: Tensor | None
    ) -> State:
        """Keys and values of the tokens after the old items x (B, P, D): see the base class."""
        split_at = torch.full((len(x),), x.shape[1], device=x.device)
        plan = plan_around_tokens(split_at, x.shape[1], self.num_memory_tokens, times)
        whole = torch.cat([self._tokens_of(users), x], 1)
        known = {} if times is None else {TIME: time_of_tokens(split_at, times)}
        return {
            COVERED: split_at,
            **known,
            **encoder.build_kv_cache(whole, plan, self.num_memory_tokens),
        }

    def continue_from(
        self, encoder: AttentionEncoder, x: Tensor, memory: State, times: Tensor | None
    ) -> tuple[Tensor, State]:
        """The last of the recent items x (B, R, D), and the same memory: see the base class."""
        of_tokens = memory.get(TIME)
        plan = plan_after_tokens(
            memory[COVERED], x.shape[1], self.num_memory_tokens, of_tokens, times
        )
        return encoder.decode(x, plan, memory), memory

    def _tokens_of(self, users: Tensor) -> Tensor:
        """The tokens of ``users`` (B,): (B, K, D)."""
        if self.users is None:
            return self.tokens.expand(len(users), -1, -1)
        return self.tokens + self.users[users]


class RecurrentState(MemoryCompressor):
    """The encoder's own state: all of a history is read, and none of it twice."""

    def __init__(self, encoder: RecurrentEncoder, private: bool) -> None:
        """A compressor for the states of ``encoder``.

        Args:
            encoder: Whose state is kept; it is not held here.
            private: Whether each user of a client has a first state of its own.
        """
        super().__init__()
        self.users = None
        if private:
            numbers = sum(part.numel() for part in encoder.initial_state(1).values())
            self.users = nn.Parameter(torch.zeros(1, numbers))

    def forward(
        self,
        encoder: RecurrentEncoder,
        x: Tensor,
        noise: Noise | None,
        packed: PackedSequences | None,
        *,
        context: SequenceContext,
        **_unread: object,
    ) -> Tensor:
        """The encoder's outputs, from the users' first states on where they have some."""
        start = None if self.users is None else self._start(encoder, context.user_rows)
        return encoder(x, noise, packed, start)

    def split_points(self, lengths: Tensor) -> Tensor:
        """No item is old: zeros (B,)."""
        return torch.zeros_like(lengths)

    def window_start(self, _length: int, _max_length: int) -> int:
        """All of a history is read."""
        return 0

    def memory_length(self, length: int, covered: int | None) -> int:
        """What the memory at hand stands for, where the history is no shorter; else 0."""
        return covered if covered is not None and covered <= length else 0

    def compress(
        self, encoder: RecurrentEncoder, x: Tensor, users: Tensor, _times: Tensor | None
    ) -> State:
        """The state after x (B, P, D), and the output of the last item: see the base class."""
        like = torch.zeros_like(x[:, :0].sum(1))
        start = {**self._start(encoder, users), HIDDEN: like}
        start[COVERED] = torch.zeros(len(x), dtype=torch.long)
        return self.continue_from(encoder, x, start)[1]

    def continue_from(
        self, encoder: RecurrentEncoder, x: Tensor, memory: State, _times: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The output after x (B, R, D) and the state there: see the base class.

        Few items are taken step by step, more of them all at once.
        """
        hidden, covered = memory[HIDDEN], memory[COVERED] + x.shape[1]
        state = {name: t for name, t in memory.items() if name not in (HIDDEN, COVERED)}
        if x.shape[1] > STEPS:
            outputs, state = encoder.forward_from(x, state)
            hidden = outputs[:, -1]
        else:
            for item in x.unbind(1):
                hidden, state = encoder.step(item, state)
        return hidden, {**state, HIDDEN: hidden, COVERED: covered}

    def _start(self, encoder: RecurrentEncoder, users: Tensor) -> State:
        """The states before the first items of ``users`` (B,)."""
        state = encoder.initial_state(len(users))
        if self.users is None:
            return state
        sizes = [part[0].numel() for part in state.values()]
        parts = self.users[users].split(sizes, dim=1)
        pairs = zip(state.items(), parts, strict=True)
        return {name: part.view(zero.shape) for (name, zero), part in pairs}


@dataclass(frozen=True)
class UserMemory:
    """A compressed history. ``covered``: how many of its first items it stands for."""

    covered: int
    tensors: Params
