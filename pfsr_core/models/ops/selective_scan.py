"""The selective scan of Mamba-1 (S6) in plain PyTorch, and the sequential reference beside it.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023),
section 3. For every sequence and every channel e with its own N decays:

    h_t = exp(dt_t A) h_{t-1} + (dt_t x_t) B_t          h_0 = 0
    y_t = C_t . h_t

Symbols: b sequences, L length, E channels, N states a channel.
    x  (b, L, E)   input                    B  (b, L, N)   input direction
    dt (b, L, E)   step size, positive      C  (b, L, N)   output direction
    A  (E, N)      decay, negative          y  (b, L, E)   output

The states of all positions, b L E N numbers, make automatic differentiation slow and large. The
scan here keeps the state between segments of about sqrt(L) positions and recomputes the others
backwards, a tile of sequences at a time so that a segment's states stay in the cache. One fused
multiply-add per position is all that is sequential. Inside, states lie as (b, T, N, E): the
channels, along which B and C are constant, run contiguously.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from pfsr_core.models.ops.func_transforms import mapped_first

UseKernel = Literal["auto", "never"]

TILE_NUMBERS = 2**18  # states held at once: a megabyte of float32 fits next to the core

_logger = logging.getLogger(__name__)


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, use_kernel: UseKernel = "auto"
) -> Tensor:
    """The scan of the module's docstring, y (b, L, E); differentiable once, in all five tensors.

    Works under ``torch.func.vmap(torch.func.grad(...))``. ``use_kernel="auto"`` tries mamba-ssm's
    compiled scan for CUDA tensors and falls back to plain PyTorch when anything is in the way.
    """
    if use_kernel == "auto" and x.is_cuda:
        y = _scan_by_kernel(x, dt, A, B, C)
        if y is not None:
            return y
    outputs: tuple[Tensor, Tensor] = _Scan.apply(x, dt, A.t().unsqueeze(0), B, C)  # type: ignore[no-untyped-call]
    return outputs[0]


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The definition, position by position, in the inputs' own dtype: what the fast scan must be.

    Differentiable any number of times; slow and large. Test it, and with it, in float64.
    """
    h = x.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for t in range(x.shape[1]):
        h, y = selective_scan_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], h=h)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def selective_scan_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, h: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of the scan.

    Args:
        x: Input (b, E).
        dt: Step size (b, E).
        A: Decay (E, N).
        B: Input direction (b, N).
        C: Output direction (b, N).
        h: State before the position (b, E, N).

    Returns:
        The next state (b, E, N) and the output y (b, E).
    """
    decay = torch.exp(dt.unsqueeze(-1) * A)
    h = decay * h + (dt * x).unsqueeze(-1) * B.unsqueeze(-2)
    return h, (h @ C.unsqueeze(-1)).squeeze(-1)


# --- the compiled scan -------------------------------------------------------------------------


@cache
def compiled_scan() -> Callable[..., Tensor] | None:
    """``selective_scan_fn`` of mamba-ssm where it is installed and loads, else None."""
    try:
        scan_module = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        scan_function: Callable[..., Tensor] = scan_module.selective_scan_fn
    except Exception as error:  # a missing package, a missing compiled part, an old driver
        _logger.info("mamba-ssm's scan does not load (%s); plain PyTorch is used", error)
        return None
    return scan_function


def _scan_by_kernel(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor | None:
    """The compiled scan's y (b, L, E), or None. It wants the length last and contiguous."""
    scan_function = compiled_scan()
    if scan_function is None:
        return None
    x, dt, B, C = (tensor.transpose(1, 2).contiguous() for tensor in (x, dt, B, C))
    try:
        return scan_function(x, dt, A.contiguous(), B, C).transpose(1, 2)
    except Exception as error:  # under torch.func, for one: the kernel has no rule for vmap
        _logger.info("mamba-ssm's scan failed (%s); plain PyTorch is used", error)
        return None


# --- plain PyTorch: A is (1, N, E), or (b, N, E) with decays of its own for every sequence -------


def _segment_length(seq_length: int) -> int:
    """Positions between two kept states. A function of L alone: both passes must agree on it."""
    return max(8, math.isqrt(seq_length - 1) + 1)


def _tiles(x: Tensor, num_states: int) -> Iterator[slice]:
    """Slices of sequences whose states over one segment stay within ``TILE_NUMBERS``."""
    num_sequences, seq_length, num_channels = x.shape
    tile_rows = max(1, TILE_NUMBERS // (_segment_length(seq_length) * num_channels * num_states))
    return (
        slice(start, min(start + tile_rows, num_sequences))
        for start in range(0, num_sequences, tile_rows)
    )


def _segments(seq_length: int) -> list[slice]:
    step = _segment_length(seq_length)
    return [slice(start, start + step) for start in range(0, seq_length, step)]


def _of_rows(A: Tensor, tile_rows: slice) -> Tensor:
    """The decays of a tile, (1 or rows, 1, N, E)."""
    return (A if A.shape[0] == 1 else A[tile_rows]).unsqueeze(1)


def _segment_states(
    dt: Tensor, u: Tensor, A: Tensor, B: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """Decays and states of one segment, (rows, T, N, E) each; u = dt x, h the state before it."""
    decay = torch.exp(dt.unsqueeze(-2) * A)
    segment_states = B.unsqueeze(-1) * u.unsqueeze(-2)
    for state, factor in zip(segment_states.unbind(1), decay.unbind(1), strict=True):
        state.addcmul_(factor, h)
        h = state
    return decay, segment_states


def _over_states(v: Tensor, segment_states: Tensor) -> Tensor:
    """Sum over n of v (b, T, N) with states (b, T, N, E): (b, T, E)."""
    return (v.unsqueeze(-2) @ segment_states).squeeze(-2)


def _over_channels(segment_states: Tensor, v: Tensor) -> Tensor:
    """Sum over e of states (b, T, N, E) with v (b, T, E): (b, T, N)."""
    return (segment_states @ v.unsqueeze(-1)).squeeze(-1)


def _forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs y (b, L, E) and the state before every segment, (b, segments, N, E)."""
    segments = _segments(x.shape[1])
    y, u = torch.empty_like(x), dt * x
    saved_states = x.new_empty(x.shape[0], len(segments), *A.shape[1:])
    for tile_rows in _tiles(x, A.shape[1]):
        h = torch.zeros_like(saved_states[tile_rows, 0])
        for index, segment_slice in enumerate(segments):
            saved_states[tile_rows, index] = h
            at = (tile_rows, segment_slice)
            _, segment_states = _segment_states(dt[at], u[at], _of_rows(A, tile_rows), B[at], h)
            y[at] = _over_states(C[at], segment_states)
            h = segment_states[:, -1]
    return y, saved_states


def _backward(
    grad_y: Tensor, inputs: tuple[Tensor, ...], saved_states: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the ``inputs`` x, dt, A, B, C, each of its tensor's shape."""
    x, dt, A, B, C = inputs
    u = dt * x
    grad_u, grad_dt, grad_B, grad_C = (torch.empty_like(tensor) for tensor in (x, dt, B, C))
    grad_A = torch.zeros_like(A)
    segments = list(enumerate(_segments(x.shape[1])))
    for tile_rows in _tiles(x, A.shape[1]):
        A_tile = _of_rows(A, tile_rows)
        grad_A_tile = grad_A if A.shape[0] == 1 else grad_A[tile_rows]
        grad_carry = torch.zeros_like(saved_states[tile_rows, 0])
        for index, segment_slice in reversed(segments):
            at, first_state = (tile_rows, segment_slice), saved_states[tile_rows, index]
            decay, segment_states = _segment_states(dt[at], u[at], A_tile, B[at], first_state)
            grad_C[at] = _over_channels(segment_states, grad_y[at])
            grad_h, grad_carry = _state_gradients(grad_y[at], C[at], decay, grad_carry)
            grad_B[at] = _over_channels(grad_h, u[at])
            grad_u[at] = _over_states(B[at], grad_h)
            grad_exponent = _exponent_gradients(grad_h, decay, segment_states, first_state)
            grad_dt[at] = (grad_exponent * A_tile).sum(-2)
            grad_exponent.mul_(dt[at].unsqueeze(-2))
            # Summed over positions, and over sequences where they share A.
            shares_decay = A_tile.shape[0] == 1
            grad_A_tile += grad_exponent.sum((0, 1))[None] if shares_decay else grad_exponent.sum(1)
    return grad_u * dt, grad_dt.addcmul_(grad_u, x), grad_A, grad_B, grad_C


def _state_gradients(
    grad_y: Tensor, C: Tensor, decay: Tensor, grad_carry: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of a segment's states (rows, T, N, E), and what they hand to the one before it."""
    grad_h = C.unsqueeze(-1) * grad_y.unsqueeze(-2)
    pairs = zip(grad_h.unbind(1), decay.unbind(1), strict=True)
    (last_gradient, factor), *earlier = reversed(list(pairs))
    last_gradient.add_(grad_carry)
    for gradient, next_factor in earlier:
        gradient.addcmul_(factor, last_gradient)
        last_gradient, factor = gradient, next_factor
    return grad_h, last_gradient * factor


def _exponent_gradients(
    grad_h: Tensor, decay: Tensor, segment_states: Tensor, first_state: Tensor
) -> Tensor:
    """Gradient of dt_t A = log(decay_t), written over ``grad_h``: grad_h_t decay_t h_{t-1}."""
    grad_h.mul_(decay)
    grad_h[:, 1:].mul_(segment_states[:, :-1])
    grad_h[:, 0].mul_(first_state)
    return grad_h


# --- autograd, and vmap by folding the mapped dimension into the sequences ----------------------


class _Scan(torch.autograd.Function):
    """x, dt, A, B, C to y and the kept states, which carry no gradient."""

    @staticmethod
    def forward(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _ScanBackward.apply(grads[0], *ctx.saved_tensors)  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(vmap_info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        return _folded(_Scan, vmap_info.batch_size, in_dims, inputs, decay_index=2)


class _ScanBackward(torch.autograd.Function):
    """A function of its own, so that a mapped backward pass is folded like the forward pass."""

    @staticmethod
    def forward(grad_y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        *inputs_, saved_states = inputs
        return _backward(grad_y, tuple(inputs_), saved_states)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing to keep: this is the last derivative."""

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> Any:
        raise RuntimeError(
            "selective_scan is differentiable once; for second derivatives call"
            " selective_scan_reference"
        )

    @staticmethod
    def vmap(vmap_info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> Any:
        return _folded(_ScanBackward, vmap_info.batch_size, in_dims, inputs, decay_index=3)


def _folded(
    autograd_function: Any,
    mapped_size: int,
    mapped_dims: tuple[int | None, ...],
    inputs: tuple[Tensor, ...],
    decay_index: int,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The function on ``mapped_size`` x b sequences, outputs with the mapped dimension first."""
    stacked_inputs = [
        mapped_first(tensor, mapped_dim, mapped_size)
        for tensor, mapped_dim in zip(inputs, mapped_dims, strict=True)
    ]
    stacked_decays, num_sequences = stacked_inputs[decay_index], stacked_inputs[0].shape[1]
    shares_decay = stacked_decays.shape[1] == 1
    stacked_inputs[decay_index] = (
        stacked_decays.expand(-1, num_sequences, -1, -1) if shares_decay else stacked_decays
    )
    outputs = autograd_function.apply(*(tensor.flatten(0, 1) for tensor in stacked_inputs))
    outputs = [output.unflatten(0, (mapped_size, num_sequences)) for output in outputs]
    if autograd_function is _ScanBackward and shares_decay:
        outputs[2] = outputs[2].sum(1, keepdim=True)
    return tuple(outputs), (0,) * len(outputs)
