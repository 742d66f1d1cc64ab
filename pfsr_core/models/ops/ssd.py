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
    inputs: ScanInputs, decay: Tensor, anchored: Direction | None, chunk: int
) -> Tensor:
    """Both directions as matrix products over chunks, linear in L.

    Only negative numbers are exponentiated. Works under ``torch.func``'s ``vmap`` and ``grad``.

    Args:
        inputs: The sequence.
        decay: a (H,) < 0, of the forward direction.
        anchored: The second direction; None leaves it out.
        chunk: The longest chunk; the length is divided evenly.

    Returns:
        y (B, L, H, P), without the skip term.
    """
    x, dt, B, C = inputs
    length = x.shape[1]
    chunk = math.ceil(length / math.ceil(length / chunk))
    log_decay, dx = (decay * dt).mT, (dt[..., None] * x).transpose(1, 2)  # heads before positions
    anchors = []  # exp(a' c_{s-1}) and g
    if anchored is not None:
        anchors = [torch.exp(anchored.decay * (dt.cumsum(1) - dt)).mT, anchored.gate.mT]
    # split, not slices: the gradient of a slice is as large as what it was cut from.
    tokens = (B.split(chunk, dim=1), C.split(chunk, dim=1), dx.split(chunk, dim=2))
    scalars = [part.split(chunk, dim=2) for part in (log_decay, *anchors)]
    outputs: list[Tensor] = []
    state: Tensor | None = None
    for b, c, v, d, *of_chunk in zip(*tokens, *scalars, strict=True):
        e, g = of_chunk or (None, None)
        r = d.cumsum(2)  # from the chunk's start: small numbers
        y = _within(r, g, e, b, c) @ v
        if state is not None:
            y = y + _weighted(c, torch.exp(r), g) @ state
        outputs.append(y)
        if len(outputs) < len(tokens[0]):
            end = r[..., -1:]
            added = _weighted(b, torch.exp(end - r), e).mT @ v
            state = added if state is None else _faded(state, end, anchored is not None) + added
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _within(r: Tensor, gate: Tensor | None, anchor: Tensor | None, B: Tensor, C: Tensor) -> Tensor:
    """Weight of each input of a chunk in each of its outputs: (B, H, Q, Q).

    r (B, H, Q): log decay since the chunk's start; gate and anchor likewise, or None.
    """
    products = (C @ B.mT).tril()  # (B, Q, Q), serves both directions
    weights: Tensor = _Weights.apply(products, r, gate, anchor)[0]  # type: ignore[no-untyped-call]
    return weights


def _weighted(vectors: Tensor, fading: Tensor, anchored: Tensor | None) -> Tensor:
    """B or C (B, Q, N) for each head, and once for each direction: (B, H, Q, N or 2 N).

    ``fading`` and ``anchored`` (B, H, Q): their weights. The states of both directions are one
    matrix (B, H, 2 N, P), so one product reads or writes both.
    """
    both = fading[..., None] * vectors[:, None]
    if anchored is None:
        return both
    return torch.cat([both, anchored[..., None] * vectors[:, None]], dim=-1)


def _faded(state: Tensor, end: Tensor, anchored: bool) -> Tensor:
    """``state`` after a chunk of log decay ``end`` (B, H, 1); the anchored half does not fade."""
    factor = torch.exp(end)[..., None]
    if not anchored:
        return factor * state
    h, S = state.chunk(2, dim=2)
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
        products: Tensor, r: Tensor, gate: Tensor | None, anchor: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # Above the diagonal r_t - r_s > 0 and may overflow; there the products are zero.
        forward = (r[..., :, None] - r[..., None, :]).clamp(max=0).exp_()
        return _both(forward, gate, anchor) * products[..., None, :, :], forward

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        products, _, gate, anchor = inputs
        ctx.save_for_backward(products, gate, anchor, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        products, gate, anchor, forward = ctx.saved_tensors
        grad_weights, grad_forward = grads
        grad_products = grad_gate = grad_anchor = None
        if grad_weights is not None:
            grad_products = (grad_weights * _both(forward, gate, anchor)).sum(-3)
            grad = grad_weights * products[..., None, :, :]
            if gate is not None:
                grad_gate = (grad @ anchor[..., None])[..., 0]
                grad_anchor = (gate[..., None, :] @ grad)[..., 0, :]
            grad_forward = grad if grad_forward is None else grad + grad_forward
        if grad_forward is None:
            return None, None, None, None
        grad_gaps = grad_forward * forward
        return grad_products, grad_gaps.sum(-1) - grad_gaps.sum(-2), grad_gate, grad_anchor


def _both(forward: Tensor, gate: Tensor | None, anchor: Tensor | None) -> Tensor:
    if gate is None or anchor is None:
        return forward
    return torch.addcmul(forward, gate[..., :, None], anchor[..., None, :])


def associative_scan_reference(
    inputs: ScanInputs, decay: Tensor, anchored: Direction | None
) -> Tensor:
    """The same map, one interaction at a time; the oracle of :func:`ssd_chunked`."""
    x, dt, B, C = inputs
    batch, L, H, P = x.shape
    h = x.new_zeros(batch, H, P, B.shape[-1])
    S = torch.zeros_like(h)
    product = x.new_ones(batch, H)
    outputs = []
    for t in range(L):
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        h = torch.exp(decay * dt[:, t])[..., None, None] * h + drive
        y = torch.einsum("bhpn,bn->bhp", h, C[:, t])
        if anchored is not None:
            S = S + product[..., None, None] * drive
            product = product * torch.exp(anchored.decay * dt[:, t])
            y = y + anchored.gate[:, t, :, None] * torch.einsum("bhpn,bn->bhp", S, C[:, t])
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def reversed_scan_of_prefix(x: Tensor, dt: Tensor, B: Tensor, a: Tensor, length: int) -> Tensor:
    """The literal definition: read the prefix from its end to its start, return the last state.

    (B, L, H, P), (B, L, H), (B, L, N), (H,) -> (B, H, P, N). Decay of the element that is read
    next applies to what was read before it, so the product runs over the older elements.
    """
    state = x.new_zeros(x.shape[0], x.shape[2], x.shape[3], B.shape[-1])
    for s in reversed(range(length)):
        drive = (dt[:, s, :, None] * x[:, s])[..., None] * B[:, s, None, None]
        state = torch.exp(a * dt[:, s])[..., None, None] * state + drive
    return state
