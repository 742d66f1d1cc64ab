"""The associative Mamba block by the compiled kernel of the distribution ``pfsr-kernels``.

The kernel computes a whole block, projections included, forward and backward, in float32 on the
CPU. It is used where it is installed, and never required: without it, and for other numbers or
devices, plain PyTorch does the same. ``PFSR_KERNELS=never`` in the environment, or
``use_kernels(False)`` around a piece of code, turns it off.

Letters in shapes: R rows (sequences), G groups of R / G rows with parameters of their own,
L length, D model width, I inner width, H heads, P = I / H, N states, K taps.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

ABI_VERSION = 1

log = logging.getLogger(__name__)
_enabled = True


class MixerParameters(NamedTuple):
    """The block's parameters; every shape may have a leading G."""

    in_weight: Tensor  # (2I + 2N + H, D): z, x, B, C, dt
    out_weight: Tensor  # (D, I)
    conv_weight: Tensor  # (I + 2N, 1, K)
    norm_weight: Tensor  # (I,)
    conv_bias: Tensor  # (I + 2N,)
    dt_bias: Tensor  # (H,)
    A_log: Tensor  # (H,)
    D: Tensor  # (H,)
    A_log_anchored: Tensor | None = None  # (H,)
    gate_bias: Tensor | None = None  # (H,)
    gate_weight: Tensor | None = None  # (H, D)


A_LOG = MixerParameters._fields.index("A_log")


@contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """Whether blocks that run inside may use the kernel where it is installed."""
    global _enabled  # noqa: PLW0603
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


@cache
def compiled() -> Any | None:
    """The module ``pfsr_kernels`` where it is installed, loads and fits, else None. Asked once."""
    choice = os.environ.get("PFSR_KERNELS", "auto")
    if choice not in ("auto", "never"):
        raise ValueError(f"PFSR_KERNELS={choice}: give auto, or never to use plain PyTorch")
    if choice == "never":
        return None
    try:
        module = importlib.import_module("pfsr_kernels")
        if module.ABI_VERSION != ABI_VERSION:
            raise OSError(f"interface {module.ABI_VERSION}, this program wants {ABI_VERSION}")
        module.library()
    except ModuleNotFoundError:
        log.info("pfsr-kernels is not installed; plain PyTorch is used")
    except Exception as error:
        log.warning("pfsr-kernels does not load (%s); plain PyTorch is used", error)
    else:
        return module
    return None


def available() -> bool:
    """Whether the kernel is installed and the environment does not turn it off."""
    return compiled() is not None


def applies_to(*tensors: Tensor) -> bool:
    """Whether the kernel is there, switched on, and computes with tensors like these."""
    return (
        _enabled
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and compiled() is not None
        and not torch.is_autocast_enabled("cpu")
    )


def mix(
    u: Tensor, parameters: MixerParameters, eps: float, lengths: Tensor | None = None
) -> Tensor:
    """The block's output (R, L, D) for u (R, L, D), differentiable once in u and the parameters.

    ``lengths`` (R,) of int64 in [0, L]: positions from there on cost nothing, give zeros and pass
    no gradient on. Without lengths every position counts. Works under ``torch.func``'s ``grad``
    and ``vmap``. ``eps`` is that of the RMS norm.
    """
    present = [tensor for tensor in parameters if tensor is not None]
    keep = torch.is_grad_enabled()
    out, _ = _Mix.apply(eps, keep, lengths, u, *present)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


# --- calls of the library ------------------------------------------------------------------------


@cache
def _shape(
    rows: int, length: int, groups: int, sizes: tuple[int, ...], eps: float, threads: int
) -> Any:
    """``pfsr_shape``, as an argument; ``sizes`` are dim, inner, heads, state, taps, anchored."""
    shape = cast(Any, compiled()).Shape(rows, length, groups, *sizes, threads, eps)
    return byref(shape)


def _sizes(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    out, conv, dt_bias = parameters[1], parameters[2], parameters[5]
    dim, inner = out.shape[-2:]
    anchored = len(parameters) == len(MixerParameters._fields)
    return (dim, inner, dt_bias.shape[-1], (conv.shape[-3] - inner) // 2, conv.shape[-1], anchored)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """``pfsr_parameters`` or ``pfsr_gradients``, as an argument. The caller holds the tensors."""
    return byref(cast(Any, compiled()).Parameters(*[tensor.data_ptr() for tensor in tensors]))


def _run(function: str, *arguments: Any) -> None:
    status = getattr(cast(Any, compiled()).library(), function)(*arguments)
    if status == 1:
        raise MemoryError("pfsr-kernels: no memory for a pass over the associative block")
    if status:
        raise ValueError("pfsr-kernels: sizes of the associative block do not fit together")


def _shape_of(eps: float, u: Tensor, parameters: Sequence[Tensor]) -> Any:
    A_log = parameters[A_LOG]
    groups = A_log.numel() // A_log.shape[-1]
    rows, length, _ = u.shape
    return _shape(rows, length, groups, _sizes(parameters), eps, torch.get_num_threads())


def _forward(
    eps: float, keep: bool, lengths: Tensor | None, u: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass reads of every row (R, floats)."""
    u, parameters = u.contiguous(), tuple(tensor.contiguous() for tensor in parameters)
    shape = _shape_of(eps, u, parameters)
    out = torch.empty_like(u)
    floats = cast(Any, compiled()).library().pfsr_kept_floats(shape) if keep else 0
    kept = u.new_empty(len(u), floats)
    _run(
        "pfsr_forward",
        shape,
        _addresses(parameters),
        u.data_ptr(),
        None if lengths is None else lengths.data_ptr(),
        out.data_ptr(),
        kept.data_ptr() if keep else None,
    )
    return out, kept


def _backward(
    eps: float,
    lengths: Tensor | None,
    grad_out: Tensor,
    kept: Tensor,
    u: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of u and of every parameter."""
    u, parameters = u.contiguous(), tuple(tensor.contiguous() for tensor in parameters)
    grad_out, kept = grad_out.contiguous(), kept.contiguous()
    make = torch.empty_like if u.numel() else torch.zeros_like
    gradients = [make(tensor) for tensor in (u, *parameters)]
    _run(
        "pfsr_backward",
        _shape_of(eps, u, parameters),
        _addresses(parameters),
        u.data_ptr(),
        None if lengths is None else lengths.data_ptr(),
        kept.data_ptr(),
        grad_out.data_ptr(),
        gradients[0].data_ptr(),
        _addresses(gradients[1:]),
    )
    return tuple(gradients)


def step(
    u: Tensor, state: dict[str, Tensor], parameters: Sequence[Tensor], eps: float
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """One interaction: u (R, D) and the state before it to the output and the state after it.

    Not differentiable. None where a tensor has no memory of its own (``torch.func``).
    """
    make = cast(Any, compiled()).State
    after = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    out = torch.empty_like(u)
    tensors = (u, *parameters, *state.values())
    if not all(tensor.is_contiguous() for tensor in tensors):
        copied = {name: tensor.contiguous() for name, tensor in state.items()}
        return step(u.contiguous(), copied, [p.contiguous() for p in parameters], eps)
    try:
        addresses = [tensor.data_ptr() for tensor in (u, out, *state.values(), *after.values())]
        weights = _addresses(parameters)
    except RuntimeError:
        return None
    shape = _shape(len(u), 1, 1, _sizes(parameters), eps, 1)
    before_states = byref(make(*addresses[2 : 2 + len(state)]))
    after_states = byref(make(*addresses[2 + len(state) :]))
    _run("pfsr_step", shape, weights, addresses[0], before_states, addresses[1], after_states)
    return out, after


# --- autograd, and vmap by folding the mapped dimension into the groups --------------------------


class _Mix(torch.autograd.Function):
    """Eps, keep, lengths, u and parameters to the output and what the backward pass reads."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.eps, _, lengths, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(lengths, output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> Any:
        lengths, kept, *tensors = ctx.saved_tensors
        if grad_out is None:
            return (None,) * (3 + len(tensors))
        gradients = _MixBackward.apply(ctx.eps, lengths, grad_out, kept, *tensors)  # type: ignore[no-untyped-call]
        return None, None, None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_Mix, info.batch_size, in_dims, inputs, _Layout(4, 2))


class _MixBackward(torch.autograd.Function):
    """A function of its own, so that a mapped backward pass is folded like the forward pass."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing to keep: this is the last derivative."""

    @staticmethod
    def backward(_ctx: Any, *_grads: Tensor) -> Any:
        raise RuntimeError(
            "the compiled associative block is differentiable once; for second derivatives build"
            " them from associative_scan_reference, in plain PyTorch"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_MixBackward, info.batch_size, in_dims, inputs, _Layout(5, 1))


class _Layout(NamedTuple):
    """Where parameters begin among a function's inputs, and how many outputs come by rows."""

    first_parameter: int
    row_outputs: int


def _folded(
    function: Any,
    size: int,
    dims: tuple[int | None, ...],
    inputs: tuple[Any, ...],
    layout: _Layout,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """``function`` on ``size`` times as many groups; outputs carry the mapped dimension first."""
    stacked = [
        _mapped_first(value, dim, size) if isinstance(value, Tensor) else value
        for value, dim in zip(inputs, dims, strict=True)
    ]
    grouped = stacked[layout.first_parameter + A_LOG].dim() > 2
    folded = [
        value.flatten(0, 1)
        if isinstance(value, Tensor) and (grouped or index < layout.first_parameter)
        else value
        for index, value in enumerate(stacked)
    ]
    outputs = [
        output.unflatten(0, (size, -1)) if grouped or index < layout.row_outputs else output
        for index, output in enumerate(function.apply(*folded))
    ]
    return tuple(outputs), (0,) * len(outputs)


def _mapped_first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
