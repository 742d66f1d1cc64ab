"""SASRec: causal self-attention over the history, with learned positions.

Source: Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018), arranged as the code
the authors released. One block maps x (B, L, D) to

    q = norm(x);   h = q + attention(query q, key and value x)
    f = norm(h);   y = f + W2 relu(W1 f)               W1, W2: D -> D

so the residual carries the normalised input, and only the query is normalised. Positions count
from the oldest interaction; the last block is followed by a norm. Dropout acts on the attention
weights and on both maps of the feed-forward part.

Symbols: B batch, L length, D width, H heads, K = D / H, M = max_length.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding, relu, scaled_dot_product_attention

from pfsr_core.models.encoders.attention import check_heads, check_length, insert, seen, split_heads
from pfsr_core.models.encoders.attention_masks import AttentionEncoder, AttentionPlan
from pfsr_core.models.encoders.base import LayerList, State
from pfsr_core.models.encoders.layers import NORM_EPS, of_prefix, with_prefix
from pfsr_core.models.ops.dropout import Dropout, Noise, noise_width
from pfsr_core.models.ops.func_transforms import is_transformed


class AttentionBlock(nn.Module):
    """One SASRec block, causal: (B, L, D) to (B, L, D).

    ``max_positions``: the most it attends to.
    """

    def __init__(
        self, model_dim: int, num_heads: int, max_positions: int, dropout_rate: float
    ) -> None:
        """A block of ``num_heads`` heads of width ``model_dim / num_heads``.

        Raises:
            ValueError: ``num_heads`` does not divide ``model_dim``.
        """
        super().__init__()
        check_heads(model_dim, num_heads)
        self.num_heads = num_heads
        self.attention_dropout = Dropout(dropout_rate, num_heads * max_positions)
        self.query_norm = nn.LayerNorm(model_dim, eps=NORM_EPS)
        self.query, self.key, self.value = (nn.Linear(model_dim, model_dim) for _ in range(3))
        self.output = nn.Linear(model_dim, model_dim)
        self.feed_forward_norm = nn.LayerNorm(model_dim, eps=NORM_EPS)
        self.inner, self.outer = nn.Linear(model_dim, model_dim), nn.Linear(model_dim, model_dim)
        self.inner_dropout = Dropout(dropout_rate, model_dim)
        self.outer_dropout = Dropout(dropout_rate, model_dim)
        self.noise_width = noise_width(
            self.attention_dropout, self.inner_dropout, self.outer_dropout
        )

    def forward(
        self, x: Tensor, noise: Noise | None = None, visible_mask: Tensor | None = None
    ) -> Tensor:
        """All positions.

        Args:
            x: Inputs (B, L, D).
            noise: Random bits of dropout; None for no dropout.
            visible_mask: What each position sees (B, L, L); None for causal attention.

        Returns:
            Outputs (B, L, D).
        """
        return self._read(x, self.keys_and_values(x), visible_mask, noise)

    def decode(self, x: Tensor, visible_mask: Tensor, kv_cache: State, count: int) -> Tensor:
        """The outputs of the last positions, without dropout.

        Args:
            x: Inputs (B, L, D).
            visible_mask: What each position sees (B, L, S).
            kv_cache: Keys and values of the first S - L positions.
            count: How many of the last positions.

        Returns:
            Outputs (B, count, D).
        """
        key_values = self.keys_and_values(x)
        key_values = {
            name: torch.cat([kv_cache[name], part], dim=2) for name, part in key_values.items()
        }
        return self._read(x[:, -count:], key_values, visible_mask[:, -count:], None)

    def keys_and_values(self, x: Tensor) -> State:
        """What others see of positions x (B, L, D): ``keys`` and ``values`` (B, H, L, K)."""
        return {"keys": self._heads(self.key(x)), "values": self._heads(self.value(x))}

    def step(
        self, x: Tensor, keys: Tensor, values: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One new interaction.

        Args:
            x: Its input (B, D).
            keys: Cache of keys (B, H, M, K).
            values: Cache of values (B, H, M, K).
            position: Interactions before it (B,).

        Returns:
            The output (B, D) and the new caches of keys and values.
        """
        q, input_row = self.query_norm(x), x.unsqueeze(1)
        keys = insert(keys, self._heads(self.key(input_row)), position)
        values = insert(values, self._heads(self.value(input_row)), position)
        queries = self._heads(self.query(q).unsqueeze(1))
        attention_mask = seen(position, keys.shape[2])
        attention_output = scaled_dot_product_attention(
            queries, keys, values, attn_mask=attention_mask
        )
        return self._after_attention(q, attention_output.flatten(1), None), keys, values

    def _heads(self, x: Tensor) -> Tensor:
        return split_heads(x, self.num_heads)

    def _read(
        self, x: Tensor, key_values: State, visible_mask: Tensor | None, noise: Noise | None
    ) -> Tensor:
        q = self.query_norm(x)
        queries = self._heads(self.query(q))
        attention_output = self._attend(
            queries, key_values["keys"], key_values["values"], visible_mask, noise
        )
        return self._after_attention(q, attention_output.transpose(1, 2).flatten(2), noise)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, visible_mask: Tensor | None, noise: Noise | None
    ) -> Tensor:
        """Attention of heads (B, H, L, K), causal without a ``visible_mask``.

        Dropout on the weights needs them in full.
        """
        attention_mask = None if visible_mask is None else visible_mask.unsqueeze(-3)
        if noise is None or not self.attention_dropout.noise_width:
            with attention_kernel():
                return scaled_dot_product_attention(
                    q, k, v, attn_mask=attention_mask, is_causal=attention_mask is None
                )
        num_positions = k.shape[2]
        if attention_mask is None:
            attention_mask = torch.ones(
                num_positions, num_positions, dtype=torch.bool, device=q.device
            ).tril()
        attention_scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        attention_weights = torch.softmax(
            attention_scores.masked_fill(~attention_mask, -torch.inf), dim=-1
        )
        dropout_bits = noise.take(self.attention_dropout.noise_width).unflatten(
            -1, (self.num_heads, -1)
        )
        keep_mask = self.attention_dropout.mask(
            dropout_bits[..., :num_positions].transpose(1, 2), q.dtype
        )
        return (attention_weights * keep_mask) @ v

    def _after_attention(self, q: Tensor, attention_output: Tensor, noise: Noise | None) -> Tensor:
        f = self.feed_forward_norm(q + self.output(attention_output))
        hidden_units = relu(self.inner_dropout(self.inner(f), noise))
        block_output: Tensor = f + self.outer_dropout(self.outer(hidden_units), noise)
        return block_output


class SASRec(AttentionEncoder):
    """Positions, blocks and a last norm: (B, L, D) to (B, L, D) with L <= ``max_length``.

    ``extra``: positions besides, which a :class:`AttentionPlan` may have.

    State: ``position`` (B,), how many interactions were seen, and for block i the caches
    ``i.keys`` and ``i.values`` (B, H, M, K).
    """

    def __init__(
        self,
        model_dim: int,
        num_layers: int,
        num_heads: int,
        max_length: int,
        dropout_rate: float,
        *,
        extra_positions: int = 0,
    ) -> None:
        """The encoder of :func:`sasrec_encoder`; ``model_dim``: D, width of an item vector."""
        super().__init__()
        self.num_heads = num_heads
        max_positions = max_length + extra_positions
        self.positions = nn.Parameter(torch.empty(max_length, model_dim).normal_(std=0.02))
        self.dropout = Dropout(dropout_rate, model_dim)
        blocks = (
            AttentionBlock(model_dim, num_heads, max_positions, dropout_rate)
            for _ in range(num_layers)
        )
        self.blocks = LayerList(blocks)
        self.noise_width = noise_width(self.dropout, *self.blocks)
        self.norm = nn.LayerNorm(model_dim, eps=NORM_EPS)

    def forward(
        self, x: Tensor, noise: Noise | None = None, *, plan: AttentionPlan | None = None
    ) -> Tensor:
        """As an :class:`AttentionEncoder`.

        Raises ``ValueError`` when x is longer than ``max_length`` and without a plan.
        """
        x, visible_mask = self._placed(x, plan), plan and plan.visible
        x = self.dropout(x, noise)
        for block in self.blocks:
            x = block(x, noise, visible_mask)
        normed_output: Tensor = self.norm(x)
        return normed_output

    def build_kv_cache(self, x: Tensor, plan: AttentionPlan, count: int) -> State:
        """As an :class:`AttentionEncoder`: ``i.keys`` and ``i.values`` (B, H, count, K)."""
        x, kv_cache = self._placed(x, plan), State()
        for block_index, block in enumerate(self.blocks):
            kv_cache |= with_prefix(block.keys_and_values(x[:, :count]), block_index)
            x = block(x, None, plan.visible)
        return kv_cache

    def decode(self, x: Tensor, plan: AttentionPlan, kv_cache: State) -> Tensor:
        """As an :class:`AttentionEncoder`: (B, D)."""
        x = self._placed(x, plan)
        for block_index, block in enumerate(self.blocks):
            num_outputs = 1 if block is self.blocks[-1] else x.shape[1]
            x = block.decode(x, plan.visible, of_prefix(kv_cache, block_index), num_outputs)
        last_output: Tensor = self.norm(x[:, -1])
        return last_output

    def _placed(self, x: Tensor, plan: AttentionPlan | None) -> Tensor:
        """The input x with its positions added."""
        if plan is None:
            self._check_length(x.shape[1])
            return x + self.positions[: x.shape[1]]
        item_positions = plan.positions[:, -x.shape[1] :]
        return x + embedding(item_positions, self.positions)

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        max_length, model_dim = self.positions.shape
        position = torch.zeros(batch_size, dtype=torch.long, device=self.positions.device)
        cache_shape = (batch_size, self.num_heads, max_length, model_dim // self.num_heads)
        encoder_state: State = {"position": position}
        for block_index in range(len(self.blocks)):
            block_cache = {
                name: self.positions.new_zeros(cache_shape) for name in ("keys", "values")
            }
            encoder_state |= with_prefix(block_cache, block_index)
        return encoder_state

    def step(self, x: Tensor, encoder_state: State) -> tuple[Tensor, State]:
        """Raises ``ValueError`` when a sequence already has ``max_length`` interactions."""
        position = encoder_state["position"]
        self._check_length(int(position.max()) + 1)
        next_state: State = {"position": position + 1}
        x = x + self.positions[position]
        for block_index, block in enumerate(self.blocks):
            block_cache = of_prefix(encoder_state, block_index)
            x, keys, values = block.step(x, block_cache["keys"], block_cache["values"], position)
            next_state |= with_prefix({"keys": keys, "values": values}, block_index)
        return self.norm(x), next_state

    def _check_length(self, num_positions: int) -> None:
        check_length("SASRec", num_positions, self.positions.shape[0])


def attention_kernel() -> AbstractContextManager[None]:
    """The composed attention inside ``torch.func`` transforms, any kernel elsewhere.

    The fused CPU kernel has no batching rule: ``vmap`` would warn and run it sample by sample.
    """
    if is_transformed():
        math_kernel: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
        return math_kernel
    return nullcontext()


def sasrec_encoder(
    embedding_dim: int,
    num_layers: int,
    num_heads: int,
    max_length: int,
    dropout_rate: float,
    *,
    extra_positions: int = 0,
) -> SASRec:
    """SASRec's encoder: (B, L, D) to (B, L, D).

    Args:
        embedding_dim: D, width of an item vector.
        num_layers: Attention blocks.
        num_heads: H, heads of a block.
        max_length: The most interactions of a history.
        dropout_rate: Probability that an entry is dropped.
        extra_positions: Positions besides those of interactions, for memory tokens.

    Raises:
        ValueError: ``num_heads`` does not divide ``embedding_dim``.
    """
    return SASRec(
        embedding_dim,
        num_layers,
        num_heads,
        max_length,
        dropout_rate,
        extra_positions=extra_positions,
    )
