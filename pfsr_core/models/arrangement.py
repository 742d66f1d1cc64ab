"""How the places of a sequence stand to each other where plain causality does not say it.

An attention encoder takes an arrangement in place of "position t sees positions <= t", and may be
given the keys and values of places that were computed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pfsr_core.models.dropout import Noise
from pfsr_core.models.layers import Encoder, State


@dataclass(frozen=True)
class Arrangement:
    """L places that see S >= L places, of which they are the last.

    ``positions`` (B, S): how many interactions lie before each, what position embeddings and
    biases count. ``visible`` (B, L, S): what each of the L sees; itself at least.
    """

    positions: Tensor
    visible: Tensor


class AttentionEncoder(Encoder, Protocol):
    """An encoder that can be told who sees whom."""

    def __call__(
        self,
        x: Tensor,
        noise: Noise | None = None,
        arrangement: Arrangement | None = None,
        memory: State | None = None,
    ) -> Tensor:
        """(B, L, D) to (B, L, D), causal without an ``arrangement``.

        ``memory``: what :meth:`remember` gave of the S - L places before x.
        """

    def remember(self, x: Tensor, arrangement: Arrangement, count: int) -> State:
        """What later places see of the first ``count`` of x, without dropout.

        Every tensor has the rows of x as its first dimension.
        """


def split_by_tokens(cuts: Tensor, length: int, tokens: int) -> Arrangement:
    """[tokens | items]: rows of ``length`` items, of which the first ``cuts`` (B,) are old.

    Old items see old items, causally. Tokens see all old items and, causally, each other; they
    count as standing at the cut. Recent items see the tokens and, causally, recent items: what is
    old reaches them through the tokens alone.
    """
    places = torch.arange(length, device=cuts.device)
    old = places < cuts[:, None]
    same = old[:, :, None] == old[:, None, :]
    among_items = same & (places[:, None] >= places)
    to_tokens = (~old)[:, :, None].expand(-1, -1, tokens)
    causal = torch.ones(tokens, tokens, dtype=torch.bool, device=cuts.device).tril()
    of_tokens = [causal.expand(len(cuts), -1, -1), old[:, None, :].expand(-1, tokens, -1)]
    visible = torch.cat([torch.cat(of_tokens, 2), torch.cat([to_tokens, among_items], 2)], 1)
    return Arrangement(_positions(cuts, places, tokens), visible)


def after_tokens(cuts: Tensor, length: int, tokens: int) -> Arrangement:
    """``length`` recent items that follow tokens standing at ``cuts`` (B,): they see all of them.

    The same places as in :func:`split_by_tokens`, without the old items.
    """
    places = torch.arange(length, device=cuts.device)
    causal = places[:, None] >= places
    visible = torch.cat([causal.new_ones(length, tokens), causal], 1)
    positions = _positions(cuts, places, tokens)
    positions = torch.cat([positions[:, :tokens], positions[:, tokens:] + cuts[:, None]], 1)
    return Arrangement(positions, visible.expand(len(cuts), -1, -1))


def _positions(cuts: Tensor, places: Tensor, tokens: int) -> Tensor:
    of_tokens = cuts[:, None].expand(-1, tokens)
    return torch.cat([of_tokens, places.expand(len(cuts), -1)], 1)
