"""The scan of the associative block in its dual form, and the definitions it is held against.

    y_t = sum_{s<=t} (C_t . B_s) [ exp(a (c_t - c_s)) + g_t exp(a' c_{s-1}) ] dt_s x_s

with c_t = dt_1 + ... + dt_t (state-space duality: Dao & Gu 2024; the second, anchored direction:
see ``associative_mamba``). Within a chunk the sum is two matrix products; between chunks it is
carried in two states, h for the first term and S for the second.

Letters in shapes: B batch, L length, H heads, P width of a head, N state size, Q chunk length.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def ssd_chunked(  # noqa: PLR0913  the equation has eight symbols
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    a: Tensor,
    a_anchored: Tensor | None,
    gate: Tensor | None,
    chunk: int,
) -> Tensor:
    """Both directions as matrix products over chunks, linear in L.

    x (B, L, H, P), dt (B, L, H) >= 0, B and C (B, L, N), a and a_anchored (H,) < 0,
    gate (B, L, H). Returns y (B, L, H, P), without the skip term. Only negative numbers are
    exponentiated. Works under ``torch.func``'s ``vmap`` and ``grad``. ``chunk``: the longest; the
    length is divided evenly.
    """
    length = x.shape[1]
    chunk = math.ceil(length / math.ceil(length / chunk))
    decay, dx = a * dt, dt[..., None] * x
    anchor = None  # exp(a' c_{s-1})
    if a_anchored is not None:
        anchor = torch.exp(a_anchored * (dt.cumsum(1) - dt))
    outputs = []
    h = S = None
    for start in range(0, length, chunk):
        now = slice(start, start + chunk)
        r = decay[:, now].cumsum(1)  # from the chunk's start: small numbers
        to_start = None if gate is None or anchor is None else (gate[:, now], anchor[:, now])
        y = _within(r, to_start, B[:, now], C[:, now], dx[:, now])
        if h is not None:
            y = torch.addcmul(y, torch.exp(r)[..., None], _read(C[:, now], h))
        if S is not None and gate is not None:
            y = torch.addcmul(y, gate[:, now, :, None], _read(C[:, now], S))
        outputs.append(y)
        if start + chunk < length:
            end = r[:, -1:]
            added = _write(torch.exp(end - r), dx[:, now], B[:, now])
            h = added if h is None else torch.addcmul(added, torch.exp(end)[..., None], h)
            if anchor is not None:
                added = _write(anchor[:, now], dx[:, now], B[:, now])
                S = added if S is None else S + added
    return torch.cat(outputs, dim=1)


def _within(
    r: Tensor, to_start: tuple[Tensor, Tensor] | None, B: Tensor, C: Tensor, dx: Tensor
) -> Tensor:
    """What the inputs of a chunk add to its outputs: (B, Q, H, P).

    r (B, Q, H): log decay since the chunk's start; ``to_start``: gate and anchor, (B, Q, H) each.
    """
    products = (C @ B.mT).tril()  # (B, Q, Q), serves both directions
    gate, anchor = (None, None) if to_start is None else (part.mT for part in to_start)
    weights = _Weights.apply(products, r.mT, gate, anchor)[0]  # type: ignore[no-untyped-call]
    y: Tensor = (weights @ dx.transpose(1, 2)).transpose(1, 2)
    return y


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


def _read(C: Tensor, state: Tensor) -> Tensor:
    """Outputs that a carried state adds: C (B, Q, N), state (B, N, H, P) -> (B, Q, H, P)."""
    outputs: Tensor = (C @ state.flatten(2)).unflatten(-1, state.shape[2:])
    return outputs


def _write(weight: Tensor, dx: Tensor, B: Tensor) -> Tensor:
    """What a chunk adds to a state: weight (B, Q, H), dx (B, Q, H, P), B (B, Q, N)."""
    weighted = weight[..., None] * dx
    added: Tensor = (B.mT @ weighted.flatten(2)).unflatten(-1, dx.shape[2:])
    return added


def associative_scan_reference(  # noqa: PLR0913  mirrors ssd_chunked
    x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    a: Tensor,
    a_anchored: Tensor | None,
    gate: Tensor | None,
) -> Tensor:
    """The same map, one interaction at a time; the oracle of :func:`ssd_chunked`."""
    batch, L, H, P = x.shape
    h = x.new_zeros(batch, H, P, B.shape[-1])
    S = torch.zeros_like(h)
    product = x.new_ones(batch, H)
    outputs = []
    for t in range(L):
        drive = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None]
        h = torch.exp(a * dt[:, t])[..., None, None] * h + drive
        y = torch.einsum("bhpn,bn->bhp", h, C[:, t])
        if a_anchored is not None and gate is not None:
            S = S + product[..., None, None] * drive
            product = product * torch.exp(a_anchored * dt[:, t])
            y = y + gate[:, t, :, None] * torch.einsum("bhpn,bn->bhp", S, C[:, t])
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
