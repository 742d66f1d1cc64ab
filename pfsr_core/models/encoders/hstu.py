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
class RelativePlan:
    """How L positions see S others: all that a block knows of order and time.

    ``back``: positions from each row's position back to each column's; ``visible``: whether it is
    seen; ``buckets`` (B, L, S): of the gaps in time, None for gaps of zero. The first two are
    (L, S), or (B, L, S) and (B, 1, L, S).
    """

    back: Tensor
    visible: Tensor
    buckets: Tensor | None

    def of_last(self, count: int) -> RelativePlan:
        """How the last ``count`` positions see."""
        gap_buckets = None if self.buckets is None else self.buckets[:, -count:]
        return RelativePlan(self.back[..., -count:, :], self.visible[..., -count:, :], gap_buckets)


class HSTUBlock(nn.Module):
    """One block, (B, L, D) to (B, L, D); causal."""

    def __init__(
        self, model_dim: int, num_heads: int, max_length: int, dropout_rate: float
    ) -> None:
        """A block over sequences of width ``model_dim``.

        Args:
            model_dim: D, width of an input.
            num_heads: H, attention heads.
            max_length: M, the most positions it attends to.
            dropout_rate: Probability that an entry is dropped.

        Raises:
            ValueError: ``num_heads`` does not divide ``model_dim``.
        """
        super().__init__()
        check_heads(model_dim, num_heads)
        self.num_heads = num_heads
        self.uvqk = nn.Parameter(torch.empty(4 * model_dim, model_dim).normal_(std=START_STD))
        self.position_bias = nn.Parameter(torch.empty(max_length).normal_(std=START_STD))
        self.time_bias = nn.Parameter(torch.empty(TIME_BUCKETS).normal_(std=START_STD))
        self.output = nn.Linear(model_dim, model_dim)
        nn.init.xavier_uniform_(self.output.weight)
        self.dropout = Dropout(dropout_rate, model_dim)
        self.noise_width = self.dropout.noise_width

    def forward(self, x: Tensor, relative_plan: RelativePlan, noise: Noise | None = None) -> Tensor:
        """All positions: x (B, L, D) to (B, L, D)."""
        u, v, q, k = self._project(x)
        return self._after_attention(x, u, self._attend(q, k, v, relative_plan), noise)

    def decode(self, x: Tensor, relative_plan: RelativePlan, kv_cache: State, count: int) -> Tensor:
        """The outputs of the last positions, without dropout.

        Args:
            x: Inputs (B, L, D).
            relative_plan: Of L positions that see S.
            kv_cache: Keys and values of the S - L positions before x.
            count: How many of the last positions.

        Returns:
            Outputs (B, count, D).
        """
        u, v, q, k = self._project(x)
        k, v = torch.cat([kv_cache["keys"], k], 2), torch.cat([kv_cache["values"], v], 2)
        attended = self._attend(q[:, :, -count:], k, v, relative_plan.of_last(count))
        return self._after_attention(x[:, -count:], u[:, -count:], attended, None)

    def keys_and_values(self, x: Tensor) -> State:
        """What others see of positions x (B, L, D): ``keys`` and ``values`` (B, H, L, K)."""
        _, v, _, k = self._project(x)
        return {"keys": k, "values": v}

    def step(
        self, x: Tensor, keys: Tensor, values: Tensor, position: Tensor, gap_buckets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One new interaction.

        Args:
            x: Its input (B, D).
            keys: Cache of keys (B, H, M, K).
            values: Cache of values (B, H, M, K).
            position: Interactions before it (B,).
            gap_buckets: Buckets of the time from every slot to now (B, 1, M).

        Returns:
            The output (B, D) and the new caches of keys and values.
        """
        input_row = x.unsqueeze(1)
        u, v, q, k = self._project(input_row)
        keys, values = insert(keys, k, position), insert(values, v, position)
        cache_slots = torch.arange(keys.shape[2], device=x.device)
        position_gaps = (position[:, None] - cache_slots).clamp(min=0)[:, None]
        attention_weights = self._weights(q @ keys.mT, self._bias(position_gaps, gap_buckets))
        attention_weights = attention_weights * seen(position, keys.shape[2])
        return (
            self._after_attention(input_row, u, attention_weights @ values, None)[:, 0],
            keys,
            values,
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The projections u (B, L, D), and v, q, k of all heads (B, H, L, K)."""
        normed_output = layer_norm(x, x.shape[-1:], eps=BLOCK_NORM_EPS)
        u, *others = silu(linear(normed_output, self.uvqk)).chunk(4, dim=-1)
        v, q, k = (split_heads(part, self.num_heads) for part in others)
        return u, v, q, k

    def _bias(self, position_gaps: Tensor, gap_buckets: Tensor | None) -> Tensor:
        """Bias of relative position and time (..., rows, columns), the same for all heads.

        Without ``gap_buckets`` every gap in time is zero.
        """
        by_position = self.position_bias.index_select(0, position_gaps.flatten()).view(
            position_gaps.shape
        )
        if gap_buckets is None:
            relative_bias = by_position + self.time_bias[0]
        else:
            by_time = self.time_bias.index_select(0, gap_buckets.flatten()).view(gap_buckets.shape)
            relative_bias = by_position + by_time
        return relative_bias if relative_bias.dim() == 2 else relative_bias.unsqueeze(1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, relative_plan: RelativePlan) -> Tensor:
        """What heads (B, H, L, K) gather from S positions: (B, H, L, K)."""
        attention_weights = (
            self._weights(q @ k.mT, self._bias(relative_plan.back, relative_plan.buckets))
            * relative_plan.visible
        )
        return attention_weights @ v

    def _weights(self, query_key_products: Tensor, relative_bias: Tensor) -> Tensor:
        return silu(query_key_products + relative_bias) / len(self.position_bias)

    def _after_attention(
        self, x: Tensor, u: Tensor, attended: Tensor, noise: Noise | None
    ) -> Tensor:
        """``attended`` (B, H, L, K), gated and added to x (B, L, D)."""
        joined_heads = attended.transpose(1, 2).flatten(2)
        gated_output = u * layer_norm(joined_heads, joined_heads.shape[-1:], eps=BLOCK_NORM_EPS)
        block_update: Tensor = self.output(self.dropout(gated_output, noise))
        return x + block_update


class HSTU(AttentionEncoder):
    """Blocks and a last norm: (B, L, D) to (B, L, D) with L <= ``max_length``.

    State: ``position`` (B,), how many interactions were seen, ``times`` (B, M) of them, and for
    block i the caches ``i.keys`` and ``i.values`` (B, H, M, K).
    """

    reads_times = True

    def __init__(
        self, model_dim: int, num_layers: int, num_heads: int, max_length: int, dropout_rate: float
    ) -> None:
        """The encoder of :func:`hstu_encoder`; ``model_dim``: D, width of an item vector."""
        super().__init__()
        self.num_heads, self.max_length = num_heads, max_length
        blocks = (
            HSTUBlock(model_dim, num_heads, max_length, dropout_rate) for _ in range(num_layers)
        )
        self.blocks = LayerList(blocks)
        self.noise_width = noise_width(*self.blocks)
        self.norm = nn.LayerNorm(model_dim, eps=NORM_EPS)

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        item_times: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        """``item_times`` (B, L) whole seconds; None for gaps of zero, as between equal times.

        With a ``plan`` as an :class:`AttentionEncoder`, whose times are in there. Raises
        ``ValueError`` when x is longer than ``max_length`` and without a plan.
        """
        if plan is None:
            check_length("HSTU", x.shape[1], self.max_length)
            relative_plan = causal_plan(x, item_times)
        else:
            relative_plan = relative_plan_of(plan, x.shape[1])
        for block in self.blocks:
            x = block(x, relative_plan, noise)
        normed_output: Tensor = self.norm(x)
        return normed_output

    def build_kv_cache(self, x: Tensor, plan: AttentionPlan, count: int) -> State:
        """As an :class:`AttentionEncoder`: ``i.keys`` and ``i.values`` (B, H, count, K)."""
        relative_plan, kv_cache = relative_plan_of(plan, x.shape[1]), State()
        for block_index, block in enumerate(self.blocks):
            kv_cache |= with_prefix(block.keys_and_values(x[:, :count]), block_index)
            x = block(x, relative_plan)
        return kv_cache

    def decode(self, x: Tensor, plan: AttentionPlan, kv_cache: State) -> Tensor:
        """As an :class:`AttentionEncoder`: (B, D)."""
        relative_plan = relative_plan_of(plan, x.shape[1])
        for block_index, block in enumerate(self.blocks):
            num_outputs = 1 if block is self.blocks[-1] else x.shape[1]
            x = block.decode(x, relative_plan, of_prefix(kv_cache, block_index), num_outputs)
        last_output: Tensor = self.norm(x[:, -1])
        return last_output

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        norm_weight = self.norm.weight
        item_times = norm_weight.new_zeros(batch_size, self.max_length, dtype=torch.long)
        cache_shape = (
            batch_size,
            self.num_heads,
            self.max_length,
            len(norm_weight) // self.num_heads,
        )
        encoder_state: State = {"position": item_times.new_zeros(batch_size), "times": item_times}
        for block_index in range(len(self.blocks)):
            block_cache = {name: norm_weight.new_zeros(cache_shape) for name in ("keys", "values")}
            encoder_state |= with_prefix(block_cache, block_index)
        return encoder_state

    def step(
        self, x: Tensor, encoder_state: State, item_times: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """``item_times`` (B,): of this interaction, whole seconds; None for zero.

        Raises ``ValueError`` when a sequence already has ``max_length`` interactions.
        """
        position = encoder_state["position"]
        check_length("HSTU", int(position.max()) + 1, self.max_length)
        current_times = torch.zeros_like(position) if item_times is None else item_times
        all_times = encoder_state["times"].scatter(1, position[:, None], current_times[:, None])
        gap_buckets = time_buckets(current_times[:, None, None] - all_times[:, None])
        next_state: State = {"position": position + 1, "times": all_times}
        for block_index, block in enumerate(self.blocks):
            block_cache = of_prefix(encoder_state, block_index)
            x, keys, values = block.step(
                x, block_cache["keys"], block_cache["values"], position, gap_buckets
            )
            next_state |= with_prefix({"keys": keys, "values": values}, block_index)
        return self.norm(x), next_state


def causal_plan(x: Tensor, item_times: Tensor | None) -> RelativePlan:
    """The plan in which each position sees itself and those before it.

    Args:
        x: Inputs (B, L, D), of which only the length is used.
        item_times: Seconds (B, L), None for gaps of zero.
    """
    item_positions = torch.arange(x.shape[1], device=x.device)
    position_gaps = item_positions[:, None] - item_positions
    gap_buckets = (
        None if item_times is None else time_buckets(item_times[:, :, None] - item_times[:, None])
    )
    return RelativePlan(position_gaps.clamp(min=0), position_gaps >= 0, gap_buckets)


def relative_plan_of(plan: AttentionPlan, num_positions: int) -> RelativePlan:
    """The relative form of an attention plan.

    Args:
        plan: Which position sees which.
        num_positions: L, how many of its last positions look.
    """
    positions, item_times = plan.positions, plan.times
    position_gaps = positions[:, -num_positions:, None] - positions[:, None]
    gap_buckets = None
    if item_times is not None:
        gap_buckets = time_buckets(item_times[:, -num_positions:, None] - item_times[:, None])
    return RelativePlan(position_gaps.clamp(min=0), plan.visible.unsqueeze(1), gap_buckets)


def time_buckets(time_gaps: Tensor) -> Tensor:
    """Buckets 0 to 127 of ``time_gaps`` in whole seconds, in their shape.

    In float64: no whole number below 1e12 is so near a bound that rounding would move it.
    """
    log_gaps = time_gaps.abs().clamp(min=1).double().log()
    return (log_gaps / BUCKET_WIDTH).long().clamp(max=TIME_BUCKETS - 1)


def hstu_encoder(
    embedding_dim: int, num_layers: int, num_heads: int, max_length: int, dropout_rate: float
) -> HSTU:
    """HSTU's encoder: (B, L, D) to (B, L, D).

    Args:
        embedding_dim: D, width of an item vector.
        num_layers: Blocks.
        num_heads: H, heads of a block.
        max_length: M, the most interactions of a history.
        dropout_rate: Probability that an entry is dropped.

    Raises:
        ValueError: ``num_heads`` does not divide D.
    """
    return HSTU(embedding_dim, num_layers, num_heads, max_length, dropout_rate)
