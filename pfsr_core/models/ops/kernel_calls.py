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

_logger = logging.getLogger(__name__)


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
    kernel_choice = os.environ.get("PFSR_KERNELS", "auto")
    if kernel_choice not in ("auto", "never"):
        raise ValueError(f"PFSR_KERNELS={kernel_choice}: give auto, or never to use plain PyTorch")
    if kernel_choice == "never":
        return None
    try:
        kernel_module = importlib.import_module("pfsr_kernels")
        if kernel_module.ABI_VERSION != ABI_VERSION:
            raise OSError(
                f"interface {kernel_module.ABI_VERSION}, this program wants {ABI_VERSION}"
            )
        kernel_module.library()
    except ModuleNotFoundError:
        _logger.info("pfsr-kernels is not installed; plain PyTorch is used")
    except Exception as error:
        _logger.warning("pfsr-kernels does not load (%s); plain PyTorch is used", error)
    else:
        return kernel_module
    return None


def lanes() -> int:
    """Floats in a vector of the instructions that the kernel uses here."""
    vector_width: int = compiled().library().pfsr_lanes()
    return vector_width


@cache
def _shape(
    batch_sizes: tuple[int, int, int],
    block_sizes: tuple[int, ...],
    norm_eps: float,
    num_threads: int,
) -> Any:
    """``pfsr_shape``, as an argument.

    ``batch_sizes``: rows, length, groups. ``block_sizes``: dim, inner, heads, state, taps,
    anchored.
    """
    kernel_shape = compiled().Shape(*batch_sizes, *block_sizes, num_threads, norm_eps)
    return byref(kernel_shape)


def _sizes(parameters: Sequence[Tensor]) -> tuple[int, ...]:
    out_weight, conv_weight, dt_bias = parameters[1], parameters[2], parameters[5]
    model_dim, inner_dim = out_weight.shape[-2:]
    anchored = len(parameters) == len(MixerParameters._fields)
    return (
        model_dim,
        inner_dim,
        dt_bias.shape[-1],
        (conv_weight.shape[-3] - inner_dim) // 2,
        conv_weight.shape[-1],
        anchored,
    )


def _addresses(tensors: Sequence[Tensor]) -> Any:
    """``pfsr_parameters`` or ``pfsr_gradients``, as an argument. The caller holds the tensors."""
    return byref(compiled().Parameters(*[tensor.data_ptr() for tensor in tensors]))


def _address_of_lengths(seq_lengths: Tensor | None) -> int | None:
    if seq_lengths is None:
        return None
    if seq_lengths.dtype != torch.int64 or not seq_lengths.is_contiguous():
        raise TypeError(f"lengths are {seq_lengths.dtype}: give a contiguous tensor of int64")
    return seq_lengths.data_ptr()


def _run(function_name: str, *call_arguments: Any) -> None:
    status_code = getattr(compiled().library(), function_name)(*call_arguments)
    if status_code == 1:
        raise MemoryError(f"pfsr-kernels: no memory for {function_name}")
    if status_code:
        raise ValueError(f"pfsr-kernels: sizes of a call of {function_name} do not fit together")


def _shape_of(norm_eps: float, u: Tensor, parameters: Sequence[Tensor]) -> Any:
    A_log = parameters[A_LOG]
    num_groups = A_log.numel() // A_log.shape[-1]
    num_rows, seq_length, _ = u.shape
    return _shape(
        (num_rows, seq_length, num_groups), _sizes(parameters), norm_eps, torch.get_num_threads()
    )


def forward(
    norm_eps: float, save_rows: bool, seq_lengths: Tensor | None, u: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass reads of every row (R, floats)."""
    u, parameters = u.contiguous(), tuple(tensor.contiguous() for tensor in parameters)
    kernel_shape = _shape_of(norm_eps, u, parameters)
    out = torch.empty_like(u)
    num_floats = compiled().library().pfsr_kept_floats(kernel_shape) if save_rows else 0
    saved_rows = u.new_empty(len(u), num_floats)
    _run(
        "pfsr_forward",
        kernel_shape,
        _addresses(parameters),
        u.data_ptr(),
        _address_of_lengths(seq_lengths),
        out.data_ptr(),
        saved_rows.data_ptr() if save_rows else None,
    )
    return out, saved_rows


def backward(
    norm_eps: float,
    seq_lengths: Tensor | None,
    grad_out: Tensor,
    saved_rows: Tensor,
    u: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of u and of every parameter."""
    u, parameters = u.contiguous(), tuple(tensor.contiguous() for tensor in parameters)
    grad_out, saved_rows = grad_out.contiguous(), saved_rows.contiguous()
    new_tensor = torch.empty_like if u.numel() else torch.zeros_like
    gradients = [new_tensor(tensor) for tensor in (u, *parameters)]
    _run(
        "pfsr_backward",
        _shape_of(norm_eps, u, parameters),
        _addresses(parameters),
        u.data_ptr(),
        _address_of_lengths(seq_lengths),
        saved_rows.data_ptr(),
        grad_out.data_ptr(),
        gradients[0].data_ptr(),
        _addresses(gradients[1:]),
    )
    return tuple(gradients)


def step(
    u: Tensor, mixer_state: dict[str, Tensor], parameters: Sequence[Tensor], norm_eps: float
) -> tuple[Tensor, dict[str, Tensor]] | None:
    """One interaction: u (R, D) and the state before it to the output and the state after it.

    Tensors of the state are matched by name, in any order. Not differentiable.
    None where a tensor has no memory of its own (``torch.func``).
    """
    state_struct = compiled().State
    next_state = {name: torch.empty_like(tensor) for name, tensor in mixer_state.items()}
    out = torch.empty_like(u)
    tensors = (u, *parameters, *mixer_state.values())
    if not all(tensor.is_contiguous() for tensor in tensors):
        contiguous_state = {name: tensor.contiguous() for name, tensor in mixer_state.items()}
        return step(
            u.contiguous(), contiguous_state, [p.contiguous() for p in parameters], norm_eps
        )
    try:
        before_states, after_states = (
            byref(
                state_struct(**{name: tensor.data_ptr() for name, tensor in state_tensors.items()})
            )
            for state_tensors in (mixer_state, next_state)
        )
        weight_addresses = _addresses(parameters)
        input_address = u.data_ptr()
        output_address = out.data_ptr()
    except RuntimeError:
        return None
    kernel_shape = _shape((len(u), 1, 1), _sizes(parameters), norm_eps, 1)
    _run(
        "pfsr_step",
        kernel_shape,
        weight_addresses,
        input_address,
        before_states,
        output_address,
        after_states,
    )
    return out, next_state


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a`` (R, D) times ``b`` (D, C), plus ``bias`` (C,); or G of each, (G, R, D), ...

    Of any strides. Not differentiable.
    """
    out = a.new_empty(*a.shape[:-1], b.shape[-1])
    if bias is not None:
        bias = bias.contiguous()
    _multiply(a, b, bias, out, add=False)
    return out


def accumulate_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds ``a @ b``, factors as for :func:`multiply`, to ``out``, which is contiguous."""
    _multiply(a, b, None, out, add=True)


def _multiply(a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor, add: bool) -> None:
    *_, num_rows, inner_size = a.shape
    num_columns = b.shape[-1]
    num_groups, a_group, b_group = (
        (a.shape[0], a.stride(0), b.stride(0)) if a.dim() > 2 else (1, 0, 0)
    )
    kernel_product = compiled().Product(
        num_groups,
        num_rows,
        num_columns,
        inner_size,
        a_group,
        *a.stride()[-2:],
        b_group,
        *b.stride()[-2:],
        add,
        torch.get_num_threads(),
    )
    bias_address = None if bias is None else bias.data_ptr()
    _run(
        "pfsr_multiply",
        byref(kernel_product),
        a.data_ptr(),
        b.data_ptr(),
        bias_address,
        out.data_ptr(),
    )
