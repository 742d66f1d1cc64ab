"""Which position of a sequence sees which, where plain causality does not say it.

An attention encoder takes a plan in place of "position t sees positions <= t", and may be
given the keys and values of positions that were computed before.

Letters in shapes: B batch, L positions that look, S >= L positions that are seen, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pfsr_core.models.encoders.base import SequenceEncoder, State


@dataclass(frozen=True)
class AttentionPlan:
    """L positions that see S >= L positions, of which they are the last.

    ``positions`` (B, S): how many interactions lie before each, what position embeddings and
    biases count. ``visible`` (B, L, S): what each of the L sees; itself at least. ``times`` (B, S):
    seconds of each, None where they are not known.
    """

    positions: Tensor
    visible: Tensor
    times: Tensor | None = None


class AttentionEncoder(SequenceEncoder):
    """An encoder that can be told which position sees which.

    Calling it takes ``plan`` as a keyword: (B, L, D) to (B, L, D), causal without one.
    """

    def build_kv_cache(self, x: Tensor, plan: AttentionPlan, count: int) -> State:
        """What later positions see of the first ``count`` of x, without dropout.

        Every tensor has the rows of x as its first dimension.
        """
        raise NotImplementedError

    def decode(self, x: Tensor, plan: AttentionPlan, memory: State) -> Tensor:
        """The last of x (B, L, D) alone, (B, D), without dropout.

        ``memory``: what :meth:`build_kv_cache` gave of the S - L positions before x.
        """
        raise NotImplementedError


def plan_around_tokens(
    split_at: Tensor, length: int, tokens: int, times: Tensor | None = None
) -> AttentionPlan:
    """[tokens | items]: rows of ``length`` items, of which the first ``split_at`` (B,) are old.

    ``times`` (B, L) of the items; tokens have that of the last old item.

    Old items see old items, causally. Tokens see all old items and, causally, each other; they
    count as standing at the split. Recent items see the tokens and, causally, recent items: what is
    old reaches them through the tokens alone.
    """
    index = torch.arange(length, device=split_at.device)
    old = index < split_at[:, None]
    same = old[:, :, None] == old[:, None, :]
    among_items = same & (index[:, None] >= index)
    to_tokens = (~old)[:, :, None].expand(-1, -1, tokens)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=split_at.device).tril()
    of_tokens = [causal.expand(len(split_at), -1, -1), old[:, None, :].expand(-1, tokens, -1)]
    visible = torch.cat([torch.cat(of_tokens, 2), torch.cat([to_tokens, among_items], 2)], 1)
    known = None if times is None else _with_tokens(time_of_tokens(split_at, times), times, tokens)
    return AttentionPlan(
        _with_tokens(split_at, index.expand(len(split_at), -1), tokens), visible, known
    )


def time_of_tokens(split_at: Tensor, times: Tensor) -> Tensor:
    """Seconds of the last old item of rows split at ``split_at`` (B,).

    0 where none is old: (B,).
    """
    last = torch.arange(times.shape[1], device=times.device) == split_at[:, None] - 1
    return (times * last).sum(1)


def plan_after_tokens(
    split_at: Tensor,
    length: int,
    tokens: int,
    of_tokens: Tensor | None = None,
    times: Tensor | None = None,
) -> AttentionPlan:
    """Recent items that follow tokens standing at ``split_at`` (B,), all of which they see.

    The same positions as in :func:`plan_around_tokens`, without the old items. ``of_tokens`` (B,):
    their time; ``times`` (B, length): of the items.
    """
    index = torch.arange(length, device=split_at.device)
    causal = index[:, None] >= index
    visible = torch.cat([causal.new_ones(length, tokens), causal], 1)
    positions = _with_tokens(split_at, split_at[:, None] + index, tokens)
    known = None
    if of_tokens is not None and times is not None:
        known = _with_tokens(of_tokens, times, tokens)
    return AttentionPlan(positions, visible.expand(len(split_at), -1, -1), known)


def _with_tokens(of_tokens: Tensor, of_items: Tensor, tokens: int) -> Tensor:
    """One number (B,) for all tokens, then those of the items (B, L): (B, tokens + L)."""
    return torch.cat([of_tokens[:, None].expand(-1, tokens), of_items], 1)
