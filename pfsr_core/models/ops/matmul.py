"""Matrix products by the compiled kernel where it applies and is faster, else by torch.

torch's float32 product takes narrow vectors on some processors that have wide ones; the kernel's
does not (``kernels/README.md``). A product has the same bits in every process on a machine: which
of the two computes it is decided by shapes and by the machine's vectors, never by timing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pfsr_core.models.ops import kernel_calls, kernels
from pfsr_core.models.ops.func_transforms import is_transformed, mapped_first

WORK = 2**19  # multiply-adds, at least: below, torch's shorter way to its product wins
LANES = 16  # of the kernel's vectors, at least: with eight (AVX2) it is only as fast as torch


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``torch.nn.functional.linear``, by the compiled kernel where that is faster.

    Args:
        x: Inputs (..., D).
        weight: (E, D).
        bias: (E,).

    Returns:
        ``x @ weight.T + bias``: (..., E).
    """
    leading_shape = x.shape[:-1]
    is_small = leading_shape.numel() * weight.numel() < WORK
    if (is_small and not is_transformed()) or not _applies_to(x, weight, bias):
        return F.linear(x, weight, bias)
    return _differentiable(x.reshape(leading_shape.numel(), x.shape[-1]), weight.T, bias).view(
        *leading_shape, len(weight)
    )


def grouped_product(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """``torch.baddbmm`` with a bias for each column.

    Args:
        a: (G, R, D).
        b: (G, D, C).
        bias: (G, C).

    Returns:
        ``a @ b`` plus the bias: (G, R, C).
    """
    if a.numel() * b.shape[-1] >= WORK and _applies_to(a, b, bias):
        return _differentiable(a, b, bias)
    return torch.baddbmm(bias[:, None], a, b)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices, not differentiable."""
    if a.numel() * b.shape[-1] >= WORK and _applies_to(a, b):
        return kernel_calls.multiply(a, b)
    return a @ b


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """``out += a @ b`` of matrices, not differentiable; ``out`` is contiguous."""
    if a.numel() * b.shape[-1] >= WORK and _applies_to(out, a, b):
        kernel_calls.accumulate_product(out, a, b)
    else:
        out.addmm_(a, b)


def _applies_to(*tensors: Tensor) -> bool:
    """Whether the kernel applies and has vectors with which it was measured to be faster."""
    return kernels.applies_to(*tensors) and kernel_calls.lanes() >= LANES


def _differentiable(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product_function = _MappedProduct if is_transformed() else _Product
    out: Tensor = product_function.apply(a, b, bias)  # type: ignore[no-untyped-call]
    return out


class _Product(torch.autograd.Function):
    """a (R, D) times b (D, C) plus bias (C,) or None; or G of each. Any number of derivatives."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        return kernel_calls.multiply(a, b, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        a, b = ctx.saved_tensors
        of_a, of_b, of_bias = ctx.needs_input_grad
        return (
            _differentiable(grad_output, b.mT, None) if of_a else None,
            # transposed, so that the gradient of a weight, b.mT, is contiguous as the weight is
            _differentiable(grad_output.mT, a, None).mT if of_b else None,
            grad_output.sum(-2) if of_bias else None,
        )


class _MappedProduct(torch.autograd.Function):
    """The same under ``torch.func``, which asks for another, slower form of ``forward``."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return kernel_calls.multiply(a, b, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    backward = _Product.backward

    @staticmethod
    def vmap(vmap_info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor | None) -> Any:
        """The mapped dimension becomes one of groups, or of more groups."""
        mapped_inputs: Any = [
            None if value is None else mapped_first(value, mapped_dim, vmap_info.batch_size)
            for value, mapped_dim in zip(inputs, in_dims, strict=True)
        ]
        is_nested = mapped_inputs[0].dim() > 3
        folded_inputs = [
            x.flatten(0, 1) if is_nested and x is not None else x for x in mapped_inputs
        ]
        out = _differentiable(*folded_inputs)
        return out.unflatten(0, (vmap_info.batch_size, -1)) if is_nested else out, 0
