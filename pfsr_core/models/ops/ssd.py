"""The scan of the associative block in its dual form, and the definitions it is held against.

    y_t = sum_{s<=t} (C_t . B_s) [ exp(a (c_t - c_s)) + g_t exp(a' c_{s-1}) ] dt_s x_s

with c_t = dt_1 + ... + dt_t (state-space duality: Dao & Gu 2024; the second, anchored direction:
see ``associative_mamba``). Within a chunk the sum is two matrix products; between chunks it is
carried in two states, h for the first term and S for the second, which lie in one matrix.

Letters in shapes: B batch, L length, H heads, P width of a head, N state size, Q chunk length.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ScanInputs(NamedTuple):
    """What a scan reads of a sequence: x (B, L, H, P), dt (B, L, H) >= 0, B and C (B, L, N)."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor


class Direction(NamedTuple):
    """The anchored direction: ``decay`` a' (H,) < 0, and the ``gate`` g (B, L, H) on it."""

    decay: Tensor
    gate: Tensor


def ssd_chunked(
    inputs: ScanInputs, decay: Tensor, anchored: Direction | None, chunk_length: int
) -> Tensor:
    """Both directions as matrix products over chunks, linear in L.

    Only negative numbers are exponentiated. Works under ``torch.func``'s ``vmap`` and ``grad``.

    Args:
        inputs: The sequence.
        decay: a (H,) < 0, of the forward direction.
        anchored: The second direction; None leaves it out.
        chunk_length: The longest chunk; the length is divided evenly.

    Returns:
        y (B, L, H, P), without the skip term.
    """
    x, dt, B, C = inputs
    seq_length = x.shape[1]
    chunk_length = math.ceil(seq_length / math.ceil(seq_length / chunk_length))
    log_decay, dx = (decay * dt).mT, (dt[..., None] * x).transpose(1, 2)  # heads before positions
    anchor_scalars = []  # exp(a' c_{s-1}) and g
    if anchored is not None:
        anchor_scalars = [torch.exp(anchored.decay * (dt.cumsum(1) - dt)).mT, anchored.gate.mT]
    # split, not slices: the gradient of a slice is as large as what it was cut from.
    token_chunks = (
        B.split(chunk_length, dim=1),
        C.split(chunk_length, dim=1),
        dx.split(chunk_length, dim=2),
    )
    scalar_chunks = [part.split(chunk_length, dim=2) for part in (log_decay, *anchor_scalars)]
    chunk_outputs: list[Tensor] = []
    carried_state: Tensor | None = None
    for b, c, v, d, *of_chunk in zip(*token_chunks, *scalar_chunks, strict=True):
        e, g = of_chunk or (None, None)
        r = d.cumsum(2)  # from the chunk's start: small numbers
        y = _within(r, g, e, b, c) @ v
        if carried_state is not None:
            y = y + _weighted(c, torch.exp(r), g) @ carried_state
        chunk_outputs.append(y)
        if len(chunk_outputs) < len(token_chunks[0]):
            chunk_decay = r[..., -1:]
            chunk_state = _weighted(b, torch.exp(chunk_decay - r), e).mT @ v
            carried_state = (
                chunk_state
                if carried_state is None
                else _faded(carried_state, chunk_decay, anchored is not None) + chunk_state
            )
    return torch.cat(chunk_outputs, dim=2).transpose(1, 2)


def _within(r: Tensor, gate: Tensor | None, anchor: Tensor | None, B: Tensor, C: Tensor) -> Tensor:
    """Weight of each input of a chunk in each of its outputs: (B, H, Q, Q).

    r (B, H, Q): log decay since the chunk's start; gate and anchor likewise, or None.
    """
    pair_products = (C @ B.mT).tril()  # (B, Q, Q), serves both directions
    weights: Tensor = _Weights.apply(pair_products, r, gate, anchor)[0]  # type: ignore[no-untyped-call]
    return weights


def _weighted(vectors: Tensor, decay_weights: Tensor, anchored: Tensor | None) -> Tensor:
    """B or C (B, Q, N) for each head, and once for each direction: (B, H, Q, N or 2 N).

    ``decay_weights`` and ``anchored`` (B, H, Q): their weights. The states of both directions are
    one matrix (B, H, 2 N, P), so one product reads or writes both.
    """
    weighted_vectors = decay_weights[..., None] * vectors[:, None]
    if anchored is None:
        return weighted_vectors
    return torch.cat([weighted_vectors, anchored[..., None] * vectors[:, None]], dim=-1)


def _faded(carried_state: Tensor, chunk_decay: Tensor, anchored: bool) -> Tensor:
    """The state after a chunk of log decay (B, H, 1); its anchored half does not decay."""
    factor = torch.exp(chunk_decay)[..., None]
    if not anchored:
        return factor * carried_state
    h, S = carried_state.chunk(2, dim=2)
    return torch.cat([factor * h, S], dim=2)


class _Weights(torch.autograd.Function):
    """Weight of input s in output t within a chunk, both directions: (B, H, Q, Q).

    products (B, Q, Q), zero above the diagonal; r, gate, anchor (B, H, Q); gate and anchor may be
    None. ``products * (exp(r_t - r_s) + gate_t * anchor_s)`` with as few passes over (B, H, Q, Q)
    as there can be; autograd would take twice as many. The second output is kept for the gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        pair_products: Tensor, r: Tensor, gate: Tensor | None, anchor: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # Above the diagonal r_t - r_s > 0 and may overflow; there the products are zero.
        forward_weights = (r[..., :, None] - r[..., None, :]).clamp(max=0).exp_()
        return _both(forward_weights, gate, anchor) * pair_products[
            ..., None, :, :
        ], forward_weights

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        pair_products, _, gate, anchor = inputs
        ctx.save_for_backward(pair_products, gate, anchor, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        pair_products, gate, anchor, forward_weights = ctx.saved_tensors
        grad_weights, grad_forward = grads
        grad_products = grad_gate = grad_anchor = None
        if grad_weights is not None:
            grad_products = (grad_weights * _both(forward_weights, gate, anchor)).sum(-3)
            grad = grad_weights * pair_products[..., None, :, :]
            if gate is not None:
                grad_gate = (grad @ anchor[..., None])[..., 0]
                grad_anchor = (gate[..., None, :] @ grad)[..., 0, :]
            grad_forward = grad if grad_forward is None else grad + grad_forward
        if grad_forward is None:
            return None, None, None, None
        grad_gaps = grad_forward * forward_weights
        return grad_products, grad_gaps.sum(-1) - grad_gaps.sum(-2), grad_gate, grad_anchor


def _both(forward_weights: Tensor, gate: Tensor | None, anchor: Tensor | None) -> Tensor:
    if gate is None or anchor is None:
        return forward_weights
    return torch.addcmul(forward_weights, gate[..., :, None], anchor[..., None, :])


def associative_scan_reference(
    inputs: ScanInputs, decay: Tensor, anchored: Direction | None
) -> Tensor:
    """The same map, one interaction at a time; the oracle of :func:`ssd_chunked`."""
    x, dt, B, C = inputs
    batch_size, L, H, P = x.shape
    h = x.new_zeros(batch_size, H, P, B.shape[-1])
    S = torch.zeros_like(h)
    anchor_decay = x.new_ones(batch_size, H)
    chunk_outputs = []
    for t in range(L):
        state_input = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        h = torch.exp(decay * dt[:, t])[..., None, None] * h + state_input
        y = torch.einsum("bhpn,bn->bhp", h, C[:, t])
        if anchored is not None:
            S = S + anchor_decay[..., None, None] * state_input
            anchor_decay = anchor_decay * torch.exp(anchored.decay * dt[:, t])
            y = y + anchored.gate[:, t, :, None] * torch.einsum("bhpn,bn->bhp", S, C[:, t])
        chunk_outputs.append(y)
    return torch.stack(chunk_outputs, dim=1)


def reversed_scan_of_prefix(x: Tensor, dt: Tensor, B: Tensor, a: Tensor, seq_length: int) -> Tensor:
    """The literal definition: read the prefix from its end to its start, return the last state.

    (B, L, H, P), (B, L, H), (B, L, N), (H,) -> (B, H, P, N). Decay of the element that is read
    next applies to what was read before it, so the product runs over the older elements.
    """
    carried_state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1])
    for s in reversed(range(seq_length)):
        state_input = (dt[:, s, :, None] * x[:, s])[..., None] * B[:, s, None, None]
        carried_state = torch.exp(a * dt[:, s])[..., None, None] * carried_state + state_input
    return carried_state
