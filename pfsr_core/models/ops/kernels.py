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
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def applies_to(*tensors: Tensor) -> bool:
    """Whether the kernel is there, switched on, and computes with tensors like these."""
    return (
        _enabled
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
        and compiled() is not None
        and not torch.is_autocast_enabled("cpu")
    )


def mix(
    u: Tensor, parameters: MixerParameters, eps: float, lengths: Tensor | None = None
) -> Tensor:
    """The block's output (R, L, D) for u (R, L, D), differentiable once in u and the parameters.

    ``lengths`` (R,) of int64, taken as if within [0, L]: positions from there on cost nothing,
    give zeros and pass no gradient on. Without lengths every position counts. Works under
    ``torch.func``'s ``grad`` and ``vmap``. ``eps`` is that of the RMS norm.
    """
    present = [tensor for tensor in parameters if tensor is not None]
    keep = torch.is_grad_enabled()
    out: Tensor = _Mix.apply(eps, keep, lengths, u, *present)[0]  # type: ignore[no-untyped-call]
    return out


# --- autograd, and vmap by folding the mapped dimension into the groups --------------------------


class _Mix(torch.autograd.Function):
    """Eps, keep, lengths, u and parameters to the output and what the backward pass reads."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return kernel_calls.forward(*inputs)

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
        mapped_first(value, dim, size) if isinstance(value, Tensor) else value
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
