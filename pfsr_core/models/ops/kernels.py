"""The associative Mamba block by the compiled kernel of the distribution ``pfsr-kernels``.

The kernel computes a whole block, projections included, forward and backward, in float32 on the
CPU. It is used where it is installed, and never required: without it, and for other numbers or
devices, plain PyTorch does the same. ``PFSR_KERNELS=never`` in the environment, or
``use_kernels(False)`` around a piece of code, turns it off.

Letters in shapes: R rows (sequences), G groups of R / G rows with parameters of their own,
L length, D model width, I inner width, H heads, P = I / H, N states, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pfsr_core.models.ops import kernel_calls
from pfsr_core.models.ops.func_transforms import mapped_first
from pfsr_core.models.ops.kernel_calls import A_LOG, MixerParameters, compiled, step

__all__ = ["MixerParameters", "applies_to", "compiled", "mix", "step", "use_kernels"]

_enabled = True


@contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """Whether blocks that run inside may use the kernel where it is installed."""
    global _enabled  # noqa: PLW0603
    previous_setting, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = previous_setting


def applies_to(*tensors: Tensor) -> bool:
    """Whether the kernel is there, switched on, and computes with tensors like these."""
    return (
        _enabled
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
        and compiled() is not None
        and not torch.is_autocast_enabled("cpu")
    )


def mix(
    u: Tensor, parameters: MixerParameters, norm_eps: float, seq_lengths: Tensor | None = None
) -> Tensor:
    """The block's output, differentiable once in u and the parameters.

    Works under ``torch.func``'s ``grad`` and ``vmap``.

    Args:
        u: Inputs (R, L, D).
        parameters: Of the block.
        norm_eps: Epsilon of the RMS norm.
        seq_lengths: int64 (R,), taken as if within [0, L]: positions from there on cost nothing,
            give zeros and pass no gradient on. None where every position counts.

    Returns:
        Outputs (R, L, D).
    """
    present = [tensor for tensor in parameters if tensor is not None]
    save_rows = torch.is_grad_enabled()
    block_output: Tensor = _Mix.apply(norm_eps, save_rows, seq_lengths, u, *present)[0]  # type: ignore[no-untyped-call]
    return block_output


# --- autograd, and vmap by folding the mapped dimension into the groups --------------------------


class _Mix(torch.autograd.Function):
    """Eps, keep, lengths, u and parameters to the output and what the backward pass reads."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return kernel_calls.forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.eps, _, seq_lengths, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(seq_lengths, output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> Any:
        seq_lengths, saved_rows, *tensors = ctx.saved_tensors
        if grad_out is None:
            return (None,) * (3 + len(tensors))
        gradients = _MixBackward.apply(ctx.eps, seq_lengths, grad_out, saved_rows, *tensors)  # type: ignore[no-untyped-call]
        return None, None, None, *gradients

    @staticmethod
    def vmap(vmap_info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_Mix, vmap_info.batch_size, in_dims, inputs, _Layout(4, 2))


class _MixBackward(torch.autograd.Function):
    """A function of its own, so that a mapped backward pass is folded like the forward pass."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return kernel_calls.backward(*inputs)

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
    def vmap(vmap_info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_MixBackward, vmap_info.batch_size, in_dims, inputs, _Layout(5, 1))


class _Layout(NamedTuple):
    """Where parameters begin among a function's inputs, and how many outputs come by rows."""

    first_parameter: int
    row_outputs: int


def _folded(
    autograd_function: Any,
    mapped_size: int,
    mapped_dims: tuple[int | None, ...],
    inputs: tuple[Any, ...],
    tensor_layout: _Layout,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The function on ``mapped_size`` times as many groups, the mapped dimension first."""
    stacked_inputs = [
        mapped_first(value, mapped_dim, mapped_size) if isinstance(value, Tensor) else value
        for value, mapped_dim in zip(inputs, mapped_dims, strict=True)
    ]
    parameters_mapped = stacked_inputs[tensor_layout.first_parameter + A_LOG].dim() > 2
    folded_inputs = [
        value.flatten(0, 1)
        if isinstance(value, Tensor)
        and (parameters_mapped or index < tensor_layout.first_parameter)
        else value
        for index, value in enumerate(stacked_inputs)
    ]
    outputs = [
        output.unflatten(0, (mapped_size, -1))
        if parameters_mapped or index < tensor_layout.row_outputs
        else output
        for index, output in enumerate(autograd_function.apply(*folded_inputs))
    ]
    return tuple(outputs), (0,) * len(outputs)
