"""Which position of a sequence sees which, where plain causality does not say it.

An attention encoder takes a plan instead of "position t sees positions <= t", and may be
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
    """An encoder that takes an attention plan.

    Calling it takes ``plan`` as a keyword: (B, L, D) to (B, L, D), causal without one.
    """

    def build_kv_cache(self, x: Tensor, plan: AttentionPlan, num_cached: int) -> State:
        """Keys and values of the first positions, without dropout.

        Args:
            x: Inputs (B, L, D).
            plan: Which position sees which.
            num_cached: How many of the first positions later ones attend to.

        Returns:
            Tensors whose first dimension is B.
        """
        raise NotImplementedError

    def decode(self, x: Tensor, plan: AttentionPlan, kv_cache: State) -> Tensor:
        """The output of the last position, without dropout.

        Args:
            x: Inputs (B, L, D).
            plan: Of L positions that see S.
            kv_cache: What :meth:`build_kv_cache` returned for the S - L positions before x.

        Returns:
            Output at the last position (B, D).
        """
        raise NotImplementedError


def plan_around_tokens(
    split_at: Tensor, num_items: int, num_tokens: int, item_times: Tensor | None = None
) -> AttentionPlan:
    """The plan of rows [memory tokens | items].

    Old items see old items, causally. Tokens see all old items and, causally, each other; they
    count as standing at the split. Recent items see the tokens and, causally, recent items: what is
    old reaches them through the tokens alone.

    Args:
        split_at: How many of the first items of each row are old (B,).
        num_items: L, items of a row.
        num_tokens: K, memory tokens.
        item_times: Seconds of the items (B, L); tokens have those of the last old item.
    """
    item_positions = torch.arange(num_items, device=split_at.device)
    is_old = item_positions < split_at[:, None]
    same_side = is_old[:, :, None] == is_old[:, None, :]
    among_items = same_side & (item_positions[:, None] >= item_positions)
    to_tokens = (~is_old)[:, :, None].expand(-1, -1, num_tokens)
    causal_mask = torch.ones(
        num_tokens, num_tokens, dtype=torch.bool, device=split_at.device
    ).tril()
    token_masks = [
        causal_mask.expand(len(split_at), -1, -1),
        is_old[:, None, :].expand(-1, num_tokens, -1),
    ]
    visible_mask = torch.cat([torch.cat(token_masks, 2), torch.cat([to_tokens, among_items], 2)], 1)
    position_times = (
        None
        if item_times is None
        else _with_tokens(time_of_tokens(split_at, item_times), item_times, num_tokens)
    )
    return AttentionPlan(
        _with_tokens(split_at, item_positions.expand(len(split_at), -1), num_tokens),
        visible_mask,
        position_times,
    )


def time_of_tokens(split_at: Tensor, item_times: Tensor) -> Tensor:
    """Seconds of the last old item of rows split at ``split_at`` (B,).

    0 where none is old: (B,).
    """
    is_last_old = (
        torch.arange(item_times.shape[1], device=item_times.device) == split_at[:, None] - 1
    )
    return (item_times * is_last_old).sum(1)


def plan_after_tokens(
    split_at: Tensor,
    num_items: int,
    num_tokens: int,
    token_times: Tensor | None = None,
    item_times: Tensor | None = None,
) -> AttentionPlan:
    """The plan of recent items that follow memory tokens and see all of them.

    The same positions as in :func:`plan_around_tokens`, without the old items.

    Args:
        split_at: Old items of each row (B,), the position of its tokens.
        num_items: L, recent items.
        num_tokens: K, memory tokens.
        token_times: Seconds of the tokens (B,).
        item_times: Seconds of the items (B, L).
    """
    item_positions = torch.arange(num_items, device=split_at.device)
    causal_mask = item_positions[:, None] >= item_positions
    visible_mask = torch.cat([causal_mask.new_ones(num_items, num_tokens), causal_mask], 1)
    all_positions = _with_tokens(split_at, split_at[:, None] + item_positions, num_tokens)
    position_times = None
    if token_times is not None and item_times is not None:
        position_times = _with_tokens(token_times, item_times, num_tokens)
    return AttentionPlan(all_positions, visible_mask.expand(len(split_at), -1, -1), position_times)


def _with_tokens(of_tokens: Tensor, of_items: Tensor, num_tokens: int) -> Tensor:
    """One number (B,) for all tokens, then those of the items (B, L): (B, tokens + L)."""
    return torch.cat([of_tokens[:, None].expand(-1, num_tokens), of_items], 1)
