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

    def __init__(self, dim: int, num_heads: int, max_positions: int, dropout: float) -> None:
        """A block of ``num_heads`` heads of width ``dim / num_heads``.

        Raises:
            ValueError: ``num_heads`` does not divide ``dim``.
        """
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.attention_dropout = Dropout(dropout, num_heads * max_positions)
        self.query_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.output = nn.Linear(dim, dim)
        self.feed_forward_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.inner, self.outer = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.inner_dropout, self.outer_dropout = Dropout(dropout, dim), Dropout(dropout, dim)
        self.noise_width = noise_width(
            self.attention_dropout, self.inner_dropout, self.outer_dropout
        )

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """``visible`` (B, L, L) in place of causality."""
        return self._read(x, self.keys_and_values(x), visible, noise)

    def decode(self, x: Tensor, visible: Tensor, memory: State, count: int) -> Tensor:
        """The last ``count`` of x alone, (B, count, D), without dropout.

        ``memory``: of the first S - L positions; ``visible`` (B, L, S).
        """
        seen = self.keys_and_values(x)
        seen = {name: torch.cat([memory[name], part], dim=2) for name, part in seen.items()}
        return self._read(x[:, -count:], seen, visible[:, -count:], None)

    def keys_and_values(self, x: Tensor) -> State:
        """What others see of positions x (B, L, D): ``keys`` and ``values`` (B, H, L, K)."""
        return {"keys": self._heads(self.key(x)), "values": self._heads(self.value(x))}

    def step(
        self, x: Tensor, keys: Tensor, values: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One interaction x (B, D) at ``position`` (B,): the output (B, D) and the new caches.

        ``keys`` and ``values``: caches (B, H, M, K).
        """
        q, row = self.query_norm(x), x.unsqueeze(1)
        keys = insert(keys, self._heads(self.key(row)), position)
        values = insert(values, self._heads(self.value(row)), position)
        queries = self._heads(self.query(q).unsqueeze(1))
        mask = seen(position, keys.shape[2])
        mixed = scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self._after_attention(q, mixed.flatten(1), None), keys, values

    def _heads(self, x: Tensor) -> Tensor:
        return split_heads(x, self.num_heads)

    def _read(self, x: Tensor, seen: State, visible: Tensor | None, noise: Noise | None) -> Tensor:
        q = self.query_norm(x)
        queries = self._heads(self.query(q))
        mixed = self._attend(queries, seen["keys"], seen["values"], visible, noise)
        return self._after_attention(q, mixed.transpose(1, 2).flatten(2), noise)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, noise: Noise | None
    ) -> Tensor:
        """Attention of heads (B, H, L, K), causal unless it is said what is ``visible``.

        Dropout on the weights needs them in full.
        """
        mask = None if visible is None else visible.unsqueeze(-3)
        if noise is None or not self.attention_dropout.noise_width:
            with attention_kernel():
                causal = mask is None
                return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        length = k.shape[2]
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
        bits = noise.take(self.attention_dropout.noise_width).unflatten(-1, (self.num_heads, -1))
        kept = self.attention_dropout.mask(bits[..., :length].transpose(1, 2), q.dtype)
        return (weights * kept) @ v

    def _after_attention(self, q: Tensor, mixed: Tensor, noise: Noise | None) -> Tensor:
        f = self.feed_forward_norm(q + self.output(mixed))
        hidden = relu(self.inner_dropout(self.inner(f), noise))
        out: Tensor = f + self.outer_dropout(self.outer(hidden), noise)
        return out


class SASRec(AttentionEncoder):
    """Positions, blocks and a last norm: (B, L, D) to (B, L, D) with L <= ``max_length``.

    ``extra``: positions besides, which a :class:`AttentionPlan` may have.

    State: ``position`` (B,), how many interactions were seen, and for block i the caches
    ``i.keys`` and ``i.values`` (B, H, M, K).
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        max_length: int,
        dropout: float,
        *,
        extra: int = 0,
    ) -> None:
        """The encoder of :func:`sasrec_encoder`; ``dim``: D, width of an item vector."""
        super().__init__()
        self.num_heads = num_heads
        max_positions = max_length + extra
        self.positions = nn.Parameter(torch.empty(max_length, dim).normal_(std=0.02))
        self.dropout = Dropout(dropout, dim)
        blocks = (AttentionBlock(dim, num_heads, max_positions, dropout) for _ in range(num_layers))
        self.blocks = LayerList(blocks)
        self.noise_width = noise_width(self.dropout, *self.blocks)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(
        self,
        x: Tensor,
        noise: Noise | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Tensor:
        """As an :class:`AttentionEncoder`.

        Raises ``ValueError`` when x is longer than ``max_length`` and without a plan.
        """
        x, visible = self._placed(x, plan), plan and plan.visible
        x = self.dropout(x, noise)
        for block in self.blocks:
            x = block(x, noise, visible)
        normed: Tensor = self.norm(x)
        return normed

    def build_kv_cache(self, x: Tensor, plan: AttentionPlan, count: int) -> State:
        """As an :class:`AttentionEncoder`: ``i.keys`` and ``i.values`` (B, H, count, K)."""
        x, memory = self._placed(x, plan), State()
        for index, block in enumerate(self.blocks):
            memory |= with_prefix(block.keys_and_values(x[:, :count]), index)
            x = block(x, None, plan.visible)
        return memory

    def decode(self, x: Tensor, plan: AttentionPlan, memory: State) -> Tensor:
        """As an :class:`AttentionEncoder`: (B, D)."""
        x = self._placed(x, plan)
        for index, block in enumerate(self.blocks):
            wanted = 1 if block is self.blocks[-1] else x.shape[1]
            x = block.decode(x, plan.visible, of_prefix(memory, index), wanted)
        last: Tensor = self.norm(x[:, -1])
        return last

    def _placed(self, x: Tensor, plan: AttentionPlan | None) -> Tensor:
        """The input x with its positions added."""
        if plan is None:
            self._check_length(x.shape[1])
            return x + self.positions[: x.shape[1]]
        own = plan.positions[:, -x.shape[1] :]
        return x + embedding(own, self.positions)

    def initial_state(self, batch_size: int) -> State:
        """As :meth:`SequenceEncoder.initial_state`."""
        max_length, dim = self.positions.shape
        position = torch.zeros(batch_size, dtype=torch.long, device=self.positions.device)
        shape = (batch_size, self.num_heads, max_length, dim // self.num_heads)
        state: State = {"position": position}
        for index in range(len(self.blocks)):
            caches = {name: self.positions.new_zeros(shape) for name in ("keys", "values")}
            state |= with_prefix(caches, index)
        return state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Raises ``ValueError`` when a sequence already has ``max_length`` interactions."""
        position = state["position"]
        self._check_length(int(position.max()) + 1)
        next_state: State = {"position": position + 1}
        x = x + self.positions[position]
        for index, block in enumerate(self.blocks):
            caches = of_prefix(state, index)
            x, keys, values = block.step(x, caches["keys"], caches["values"], position)
            next_state |= with_prefix({"keys": keys, "values": values}, index)
        return self.norm(x), next_state

    def _check_length(self, length: int) -> None:
        check_length("SASRec", length, self.positions.shape[0])


def attention_kernel() -> AbstractContextManager[None]:
    """The composed attention inside ``torch.func`` transforms, any kernel elsewhere.

    The fused CPU kernel has no batching rule: ``vmap`` would warn and run it sample by sample.
    """
    if is_transformed():
        composed: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
        return composed
    return nullcontext()


def sasrec_encoder(
    embedding_dim: int,
    num_layers: int,
    num_heads: int,
    max_length: int,
    dropout: float,
    *,
    extra: int = 0,
) -> SASRec:
    """SASRec's encoder, (B, L, D) to (B, L, D), D = ``embedding_dim``, L <= ``max_length``.

    ``extra``: positions besides those of interactions, for learned tokens. Raises ``ValueError``
    when ``num_heads`` does not divide ``embedding_dim``.
    """
    return SASRec(embedding_dim, num_layers, num_heads, max_length, dropout, extra=extra)
