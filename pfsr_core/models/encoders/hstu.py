"""HSTU: pointwise attention with biases of relative position and relative time.

Source: Zhai et al., "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers
for Generative Recommendations" (ICML 2024), equations 1 to 3, and the code that its authors
released (generative-recommenders). One block maps x (B, L, D) to

    u, v, q, k = split( silu( W norm(x) ) )                          W: D -> 4 D
    a_i = 1/M sum_{j<=i} silu( q_i . k_j + p[i - j] + g[bucket(t_i - t_j)] ) v_j
    y   = x + W_o ( u * norm(a) ) + b_o                              W_o: D -> D

There is no softmax, no feed-forward part, and the norms inside a block have no parameters. Both
biases are a block's own and shared by its heads. Dropout acts on ``u * norm(a)``.

* The divisor is ``max_length``, never the length of what is at hand: with that a history scored
  item by item, from caches, would differ from the same history scored at once.
* ``bucket(gap) = floor( ln(max(1, |gap|)) / .301 )``, gaps in seconds, the last bucket open.
* The released code takes for t_i the time of the interaction that follows i, the one to predict.
  That time is unknown when one recommends, and tells a tied batch from a new session: here t_i is
  the time of interaction i itself, and nothing of the future is read.
* The last block is followed by a norm, where the released code divides by the Euclidean length and
  a temperature: our head is a plain dot product.

Symbols: B batch, L length, D width, H heads, K = D / H, M = max_length, G time buckets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear, silu

from pfsr_core.models.encoders.attention import check_heads, check_length, insert, seen, split_heads
from pfsr_core.models.encoders.attention_masks import AttentionEncoder, AttentionPlan
from pfsr_core.models.encoders.base import LayerList, State
from pfsr_core.models.encoders.layers import NORM_EPS, of_prefix, with_prefix
from pfsr_core.models.ops.dropout import Dropout, Noise, noise_width

TIME_BUCKETS = 128  # as published; seconds of 30 years fill 69 of them
BUCKET_WIDTH = 0.301  # in natural logarithms of seconds: about log10(2), so 35 % a bucket
BLOCK_NORM_EPS = 1e-6
START_STD = 0.02  # of the joint projection and of both biases


@dataclass(frozen=True)
class View:
    """How L positions see S others: all that a block knows of order and time.

    ``back``: positions from each row's position back to each column's; ``visible``: whether it is
    seen; ``buckets`` (B, L, S): of the gaps in time, None for gaps of zero. The first two are
    (L, S), or (B, L, S) and (B, 1, L, S).
    """

    back: Tensor
    visible: Tensor
    buckets: Tensor | None

    def of_last(self, count: int) -> View:
        """How the last ``count`` positions see."""
        buckets = None if self.buckets is None else self.buckets[:, -count:]
        return View(self.back[..., -count:, :], self.visible[..., -count:, :], buckets)


class HSTUBlock(nn.Module):
    """One block, (B, L, D) to (B, L, D); causal."""

    def __init__(self, dim: int, num_heads: int, max_length: int, dropout: float) -> None:
        """A block of ``num_heads`` heads over at most ``max_length`` positions of width ``dim``."""
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.uvqk = nn.Parameter(torch.empty(4 * dim, dim).normal_(std=START_STD))
        self.position_bias = nn.Parameter(torch.empty(max_length).normal_(std=START_STD))
        self.time_bias = nn.Parameter(torch.empty(TIME_BUCKETS).normal_(std=START_STD))
        self.output = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.output.weight)
        self.dropout = Dropout(dropout, dim)
        self.noise_width = self.dropout.noise_width

    def forward(
        self,
        x: Tensor,
        view: View,
        noise: Noise | None = None,
    ) -> Tensor:
        """All positions: x (B, L, D) to (B, L, D)."""
        u, v, q, k = self._project(x)
        return self._after_attention(x, u, self._attend(q, k, v, view), noise)

    def decode(self, x: Tensor, view: View, memory: State, count: int) -> Tensor:
        """The last ``count`` of x alone, (B, count, D), without dropout.

        ``memory``: keys and values of the positions that come before x in the ``view``.
        """
        u, v, q, k = self._project(x)
        k, v = torch.cat([memory["keys"], k], 2), torch.cat([memory["values"], v], 2)
        attended = self._attend(q[:, :, -count:], k, v, view.of_last(count))
        return self._after_attention(x[:, -count:], u[:, -count:], attended, None)

    def keys_and_values(self, x: Tensor) -> State:
        """What others see of positions x (B, L, D): ``keys`` and ``values`` (B, H, L, K)."""
        _, v, _, k = self._project(x)
        return {"keys": k, "values": v}

    def step(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        position: Tensor,
        buckets: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One interaction x (B, D) at ``position`` (B,): the output (B, D) and the new caches.

        ``keys`` and ``values``: caches (B, H, M, K). ``buckets`` (B, 1, M): of the gaps from every
        slot to now.
        """
        row = x.unsqueeze(1)
        u, v, q, k = self._project(row)
        keys, values = insert(keys, k, position), insert(values, v, position)
        slots = torch.arange(keys.shape[2], device=x.device)
        back = (position[:, None] - slots).clamp(min=0)[:, None]
        weights = self._weights(q @ keys.mT, self._bias(back, buckets))
        weights = weights * seen(position, keys.shape[2])
        return self._after_attention(row, u, weights @ values, None)[:, 0], keys, values

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The projections u (B, L, D), and v, q, k of all heads (B, H, L, K)."""
        normed = layer_norm(x, x.shape[-1:], eps=BLOCK_NORM_EPS)
        u, *others = silu(linear(normed, self.uvqk)).chunk(4, dim=-1)
        v, q, k = (split_heads(part, self.num_heads) for part in others)
        return u, v, q, k

    def _bias(self, back: Tensor, buckets: Tensor | None) -> Tensor:
        """For ``back`` positions and a gap in a bucket, (..., rows, columns): the same for heads.

        Without ``buckets`` every gap is zero.
        """
        by_position = self.position_bias.index_select(0, back.flatten()).view(back.shape)
        if buckets is None:
            bias = by_position + self.time_bias[0]
        else:
            by_time = self.time_bias.index_select(0, buckets.flatten()).view(buckets.shape)
            bias = by_position + by_time
        return bias if bias.dim() == 2 else bias.unsqueeze(1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        """What heads (B, H, L, K) gather from S positions: (B, H, L, K)."""
        weights = self._weights(q @ k.mT, self._bias(view.back, view.buckets)) * view.visible
        return weights @ v

    def _weights(self, products: Tensor, bias: Tensor) -> Tensor:
        return silu(products + bias) / len(self.position_bias)

    def _after_attention(
        self, x: Tensor, u: Tensor, attended: Tensor, noise: Noise | None
    ) -> Tensor:
        """``attended`` (B, H, L, K), gated and added to x (B, L, D)."""
        joined = attended.transpose(1, 2).flatten(2)
        gated = u * layer_norm(joined, joined.shape[-1:], eps=BLOCK_NORM_EPS)
        added: Tensor = self.output(self.dropout(gated, noise))
        return x + added


class HSTU(AttentionEncoder):
    """Blocks and a last norm: (B, L, D) to (B, L, D) with L <= ``max_length``.

    State: ``position`` (B,), how many interactions were seen, ``times`` (B, M) of them, and for
    block i the caches ``i.keys`` and ``i.values`` (B, H, M, K).
    """

    reads_times = True

    def __init__(
        self, dim: int, num_layers: int, num_heads: int, max_length: int, dropout: float
    ) -> None:
        """The encoder of :func:`hstu_encoder`; ``dim``: D, width of an item vector."""
        super().__init__()
        self.num_heads, self.max_length = num_heads, max_length
        blocks = (HSTUBlock(dim, num_heads, max_length, dropout) for _ in range(num_layers))
        self.blocks = LayerList(blocks)
        self.noise_width = noise_width(*self.blocks)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        times: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        """``times`` (B, L) whole seconds; None for gaps of zero, as between equal times.

        With a ``plan`` as an :class:`AttentionEncoder`, whose times are in there. Raises
        ``ValueError`` when x is longer than ``max_length`` and without a plan.
        """
        if plan is None:
            check_length("HSTU", x.shape[1], self.max_length)
            view = causal_view(x, times)
        else:
            view = view_of(plan, x.shape[1])
        for block in self.blocks:
            x = block(x, view, noise)
        normed: Tensor = self.norm(x)
        return normed

    def build_kv_cache(self, x: Tensor, plan: AttentionPlan, count: int) -> State:
        """As an :class:`AttentionEncoder`: ``i.keys`` and ``i.values`` (B, H, count, K)."""
        view, memory = view_of(plan, x.shape[1]), State()
        for index, block in enumerate(self.blocks):
            memory |= with_prefix(block.keys_and_values(x[:, :count]), index)
            x = block(x, view)
        return memory

    def decode(self, x: Tensor, plan: AttentionPlan, memory: State) -> Tensor:
        """As an :class:`AttentionEncoder`: (B, D)."""
        view = view_of(plan, x.shape[1])
        for index, block in enumerate(self.blocks):
            wanted = 1 if block is self.blocks[-1] else x.shape[1]
            x = block.decode(x, view, of_prefix(memory, index), wanted)
        last: Tensor = self.norm(x[:, -1])
        return last

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        like = self.norm.weight
        times = like.new_zeros(batch_size, self.max_length, dtype=torch.long)
        shape = (batch_size, self.num_heads, self.max_length, len(like) // self.num_heads)
        state: State = {"position": times.new_zeros(batch_size), "times": times}
        for index in range(len(self.blocks)):
            caches = {name: like.new_zeros(shape) for name in ("keys", "values")}
            state |= with_prefix(caches, index)
        return state

    def step(self, x: Tensor, state: State, times: Tensor | None = None) -> tuple[Tensor, State]:
        """``times`` (B,): of this interaction, whole seconds; None for zero.

        Raises ``ValueError`` when a sequence already has ``max_length`` interactions.
        """
        position = state["position"]
        check_length("HSTU", int(position.max()) + 1, self.max_length)
        now = torch.zeros_like(position) if times is None else times
        all_times = state["times"].scatter(1, position[:, None], now[:, None])
        buckets = time_buckets(now[:, None, None] - all_times[:, None])
        next_state: State = {"position": position + 1, "times": all_times}
        for index, block in enumerate(self.blocks):
            caches = of_prefix(state, index)
            x, keys, values = block.step(x, caches["keys"], caches["values"], position, buckets)
            next_state |= with_prefix({"keys": keys, "values": values}, index)
        return self.norm(x), next_state


def causal_view(x: Tensor, times: Tensor | None) -> View:
    """Of the positions of x (B, L, D) in their order, at ``times`` (B, L)."""
    steps = torch.arange(x.shape[1], device=x.device)
    back = steps[:, None] - steps
    buckets = None if times is None else time_buckets(times[:, :, None] - times[:, None])
    return View(back.clamp(min=0), back >= 0, buckets)


def view_of(plan: AttentionPlan, length: int) -> View:
    """Of the last ``length`` positions of a plan."""
    positions, times = plan.positions, plan.times
    back = positions[:, -length:, None] - positions[:, None]
    buckets = None
    if times is not None:
        buckets = time_buckets(times[:, -length:, None] - times[:, None])
    return View(back.clamp(min=0), plan.visible.unsqueeze(1), buckets)


def time_buckets(gaps: Tensor) -> Tensor:
    """Buckets 0 to 127 of ``gaps`` in whole seconds, in their shape.

    In float64: no whole number below 1e12 is so near a bound that rounding would move it.
    """
    logarithms = gaps.abs().clamp(min=1).double().log()
    return (logarithms / BUCKET_WIDTH).long().clamp(max=TIME_BUCKETS - 1)


def hstu_encoder(
    embedding_dim: int, num_layers: int, num_heads: int, max_length: int, dropout: float
) -> HSTU:
    """HSTU over histories of at most ``max_length``; D = ``embedding_dim``.

    ``dropout`` is a probability. Raises ``ValueError`` when ``num_heads`` does not divide D.
    """
    return HSTU(embedding_dim, num_layers, num_heads, max_length, dropout)
