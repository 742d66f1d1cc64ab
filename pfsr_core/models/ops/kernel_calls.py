"""The calls of the compiled kernel: tensors to addresses, and what comes back.

Nothing here is differentiable or knows ``torch.func``; that is ``kernels``, where the letters in
shapes are explained, too.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from ctypes import byref
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

ABI_VERSION = 2

log = logging.getLogger(__name__)


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


@cache
def compiled() -> Any:
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


def lanes() -> int:
    """Floats in a vector of the instructions that the kernel uses here."""
    width: int = compiled().library().pfsr_lanes()
    return width


@cache
def _shape(batch: tuple[int, int, int], sizes: tuple[int, ...], eps: float, threads: int) -> Any:
    """``pfsr_shape``, as an argument.

    ``batch``: rows, length, groups; ``sizes``: dim, inner, heads, state, taps, anchored.
    """
    shape = compiled().Shape(*batch, *sizes, threads, eps)
    return byref(shape)


def _sizes(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    out, conv, dt_bias = parameters[1], parameters[2], parameters[5]
    dim, inner = out.shape[-2:]
    anchored = len(parameters) == len(MixerParameters._fields)
    return (dim, inner, dt_bias.shape[-1], (conv.shape[-3] - inner) // 2, conv.shape[-1], anchored)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """``pfsr_parameters`` or ``pfsr_gradients``, as an argument. The caller holds the tensors."""
    return byref(compiled().Parameters(*[tensor.data_ptr() for tensor in tensors]))


def _address_of_lengths(lengths: Tensor | None) -> int | None:
    if lengths is None:
        return None
    if lengths.dtype != torch.int64 or not lengths.is_contiguous():
        raise TypeError(f"lengths are {lengths.dtype}: give a contiguous tensor of int64")
    return lengths.data_ptr()


def _run(function: str, *arguments: Any) -> None:
    status = getattr(compiled().library(), function)(*arguments)
    if status == 1:
        raise MemoryError(f"pfsr-kernels: no memory for {function}")
    if status:
        raise ValueError(f"pfsr-kernels: sizes of a call of {function} do not fit together")


def _shape_of(eps: float, u: Tensor, parameters: Sequence[Tensor]) -> Any:
    A_log = parameters[A_LOG]
    groups = A_log.numel() // A_log.shape[-1]
    rows, length, _ = u.shape
    return _shape((rows, length, groups), _sizes(parameters), eps, torch.get_num_threads())


def forward(
    eps: float, keep: bool, lengths: Tensor | None, u: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass reads of every row (R, floats)."""
    u, parameters = u.contiguous(), tuple(tensor.contiguous() for tensor in parameters)
    shape = _shape_of(eps, u, parameters)
    out = torch.empty_like(u)
    floats = compiled().library().pfsr_kept_floats(shape) if keep else 0
    kept = u.new_empty(len(u), floats)
    _run(
        "pfsr_forward",
        shape,
        _addresses(parameters),
        u.data_ptr(),
        _address_of_lengths(lengths),
        out.data_ptr(),
        kept.data_ptr() if keep else None,
    )
    return out, kept


def backward(
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
        _address_of_lengths(lengths),
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

    What a tensor of the state is its name says, in whatever order they come. Not differentiable.
    None where a tensor has no memory of its own (``torch.func``).
    """
    make = compiled().State
    after = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    out = torch.empty_like(u)
    tensors = (u, *parameters, *state.values())
    if not all(tensor.is_contiguous() for tensor in tensors):
        copied = {name: tensor.contiguous() for name, tensor in state.items()}
        return step(u.contiguous(), copied, [p.contiguous() for p in parameters], eps)
    try:
        before_states, after_states = (
            byref(make(**{name: tensor.data_ptr() for name, tensor in part.items()}))
            for part in (state, after)
        )
        weights, read, written = _addresses(parameters), u.data_ptr(), out.data_ptr()
    except RuntimeError:
        return None
    shape = _shape((len(u), 1, 1), _sizes(parameters), eps, 1)
    _run("pfsr_step", shape, weights, read, before_states, written, after_states)
    return out, after


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a`` (R, D) times ``b`` (D, C), plus ``bias`` (C,); or G of each, (G, R, D), ...

    Of any strides. Not differentiable.
    """
    out = a.new_empty(*a.shape[:-1], b.shape[-1])
    if bias is not None:
        bias = bias.contiguous()
    _multiply(a, b, bias, out, add=False)
    return out


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds ``a @ b``, factors as for :func:`multiply`, to ``out``, which is contiguous."""
    _multiply(a, b, None, out, add=True)


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, add: bool) -> None:
    *_, rows, depth = a.shape
    columns = b.shape[-1]
    groups, a_group, b_group = (a.shape[0], a.stride(0), b.stride(0)) if a.dim() > 2 else (1, 0, 0)
    product = compiled().Product(
        groups,
        rows,
        columns,
        depth,
        a_group,
        *a.stride()[-2:],
        b_group,
        *b.stride()[-2:],
        add,
        torch.get_num_threads(),
    )
    start = None if bias is None else bias.data_ptr()
    _run("pfsr_multiply", byref(product), a.data_ptr(), b.data_ptr(), start, out.data_ptr())
