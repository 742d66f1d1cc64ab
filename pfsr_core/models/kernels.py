"""The associative Mamba mixer by the compiled kernel of the distribution ``pfsr-kernels``.

The kernel does everything between the block's two projections, forward and backward, in float32
on the CPU. It is used where it is installed, and never required: without it, for other numbers or
devices, and for second derivatives plain PyTorch does the same. ``PFSR_KERNELS=never`` in the
environment, or ``use_kernels(False)`` around a piece of code, turns it off.

Letters in shapes: R rows (sequences), G groups of R / G rows with parameters of their own,
L length, I inner width, H heads, N states, K taps, W = 2I + 2N + H, and H more with a gate.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator
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
    """What the mixer has between its projections; every shape may have a leading G."""

    conv_weight: Tensor  # (I + 2N, 1, K)
    conv_bias: Tensor  # (I + 2N,)
    dt_bias: Tensor  # (H,)
    A_log: Tensor  # (H,)
    D: Tensor  # (H,)
    norm_weight: Tensor  # (I,)
    A_log_anchored: Tensor | None = None  # (H,)
    gate_bias: Tensor | None = None  # (H,)


class Mixer(NamedTuple):
    """What is no tensor. ``plain(projected, parameters)`` is the same map of one group's rows."""

    eps: float
    plain: Callable[[Tensor, MixerParameters], Tensor]


@contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """Whether blocks that run inside may use the kernel, whatever the environment says not."""
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


def applies_to(*tensors: Tensor) -> bool:
    """Whether the kernel is there, switched on, and computes with tensors like these."""
    return (
        _enabled
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and compiled() is not None
    )


def mix(
    projected: Tensor, parameters: MixerParameters, mixer: Mixer, lengths: Tensor | None = None
) -> Tensor:
    """projected (R, L, W) to (R, L, I): convolution, both directions, skip, gate and norm.

    The columns are z, x, B, C, dt and, anchored, the gate's logits. ``lengths`` (R,) of int64:
    positions from there on cost nothing, give zeros and pass no gradient on. Without lengths
    every position counts. Works under ``torch.func``'s ``grad`` and ``vmap``.
    """
    present = [tensor for tensor in parameters if tensor is not None]
    keep = torch.is_grad_enabled()
    out, _, _ = _Mix.apply(mixer, keep, lengths, projected, *present)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


# --- calls of the library ------------------------------------------------------------------------


class _Call:
    """Shape and addresses of one call; holds the tensors behind the addresses."""

    def __init__(self, mixer: Mixer, projected: Tensor, parameters: tuple[Tensor, ...]) -> None:
        self.module = cast(Any, compiled())
        self.library = self.module.library()
        self.projected = projected.contiguous()
        self.parameters = [tensor.contiguous() for tensor in parameters]
        conv, _, dt_bias, A_log, _, norm, *anchored = self.parameters
        heads, inner = dt_bias.shape[-1], norm.shape[-1]
        self.shape = self.module.Shape(
            rows=projected.shape[0],
            length=projected.shape[1],
            groups=A_log.numel() // heads,
            inner=inner,
            heads=heads,
            state=(conv.shape[-3] - inner) // 2,
            taps=conv.shape[-1],
            anchored=bool(anchored),
            threads=torch.get_num_threads(),
            eps=mixer.eps,
        )
        width = 2 * inner + 2 * self.shape.state + heads * (2 if anchored else 1)
        if projected.shape[-1] != width:
            raise ValueError(f"projected has {projected.shape[-1]} columns, not {width}")

    def empty_rows(self, width: int) -> Tensor:
        return self.projected.new_empty(self.shape.rows, self.shape.length, width)

    def addresses(self, tensors: list[Tensor]) -> Any:
        return byref(self.module.Parameters(*(tensor.data_ptr() for tensor in tensors)))

    def check(self, status: int) -> None:
        if status == 1:
            raise MemoryError("pfsr-kernels: no memory for a pass over the associative block")
        if status:
            raise ValueError("pfsr-kernels: sizes of the associative block do not fit together")


def _forward(
    mixer: Mixer,
    keep: bool,
    lengths: Tensor | None,
    projected: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, and for the backward pass y (R, L, I) and the kept states (R, floats)."""
    call = _Call(mixer, projected, parameters)
    inner = call.shape.inner
    out = call.empty_rows(inner)
    y = call.empty_rows(inner) if keep else projected.new_empty(len(projected), 0)
    floats = call.library.pfsr_kept_floats(byref(call.shape)) if keep else 0
    kept = projected.new_empty(len(projected), floats)
    status = call.library.pfsr_forward(
        byref(call.shape),
        call.addresses(call.parameters),
        call.projected.data_ptr(),
        None if lengths is None else lengths.data_ptr(),
        out.data_ptr(),
        y.data_ptr() if keep else None,
        kept.data_ptr() if keep else None,
    )
    call.check(status)
    return out, y, kept


def _backward(
    mixer: Mixer,
    lengths: Tensor | None,
    grad_out: Tensor,
    y: Tensor,
    kept: Tensor,
    projected: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of ``projected`` and of every parameter."""
    call = _Call(mixer, projected, parameters)
    grad_out = grad_out.contiguous()
    grad_projected = torch.empty_like(call.projected)
    gradients = [torch.zeros_like(tensor) for tensor in call.parameters]
    status = call.library.pfsr_backward(
        byref(call.shape),
        call.addresses(call.parameters),
        call.projected.data_ptr(),
        None if lengths is None else lengths.data_ptr(),
        y.contiguous().data_ptr(),
        kept.contiguous().data_ptr(),
        grad_out.data_ptr(),
        grad_projected.data_ptr(),
        call.addresses(gradients),
    )
    call.check(status)
    return grad_projected, *gradients


# --- autograd, and vmap by folding the mapped dimension into the groups --------------------------


class _Layout(NamedTuple):
    """Where parameters begin among a function's inputs, and how many outputs come by rows."""

    first_parameter: int
    row_outputs: int


class _Mix(torch.autograd.Function):
    """Mixer, keep, lengths, projected and parameters to the output, y and the kept states."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mixer, _, lengths, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(lengths, output[1], output[2], *tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, *_: None) -> Any:
        lengths, y, kept, *tensors = ctx.saved_tensors
        if grad_out is None:
            return (None,) * (3 + len(tensors))
        gradients = _MixBackward.apply(ctx.mixer, lengths, grad_out, y, kept, *tensors)  # type: ignore[no-untyped-call]
        return None, None, None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_Mix, info.batch_size, in_dims, inputs, _Layout(4, 3))


class _MixBackward(torch.autograd.Function):
    """A function of its own, so that a mapped backward pass is folded like the forward pass."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mixer, lengths, grad_out, _, _, *tensors = inputs
        ctx.save_for_backward(lengths, grad_out, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Second derivatives: those of the plain path."""
        lengths, grad_out, *tensors = ctx.saved_tensors

        def first(grad_out: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            _, pull = torch.func.vjp(lambda *t: _plain(ctx.mixer, lengths, *t), *tensors)
            return cast(tuple[Tensor, ...], pull(grad_out))

        _, pull = torch.func.vjp(first, grad_out, *tensors)
        by_grad_out, *by_tensors = pull(grads)
        return None, None, by_grad_out, None, None, *by_tensors

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_MixBackward, info.batch_size, in_dims, inputs, _Layout(6, 1))


def _plain(
    mixer: Mixer, lengths: Tensor | None, projected: Tensor, *parameters: Tensor
) -> Tensor:
    """The same map in plain PyTorch, groups and lengths included."""
    if parameters[3].dim() > 1:
        rows = projected.unflatten(0, (parameters[3].shape[0], -1))
        one = lambda rows, *p: mixer.plain(rows, MixerParameters(*p))  # noqa: E731
        out = torch.func.vmap(one)(rows, *parameters).flatten(0, 1)
    else:
        out = mixer.plain(projected, MixerParameters(*parameters))
    if lengths is None:
        return out
    live = torch.arange(out.shape[1]) < lengths[:, None]
    return out.masked_fill(~live[..., None], 0.0)


def _folded(
    function: Any, size: int, dims: tuple[int | None, ...], inputs: tuple[Any, ...], layout: _Layout
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """``function`` on ``size`` times as many groups; outputs carry the mapped dimension first."""
    stacked = [
        _stacked(tensor, dim, size) if isinstance(tensor, Tensor) else tensor
        for tensor, dim in zip(inputs, dims, strict=True)
    ]
    grouped = stacked[layout.first_parameter + 3].dim() > 2
    folded = [
        tensor.flatten(0, 1)
        if isinstance(tensor, Tensor) and (grouped or index < layout.first_parameter)
        else tensor
        for index, tensor in enumerate(stacked)
    ]
    outputs = function.apply(*folded)
    unfolded = [
        output.unflatten(0, (size, output.shape[0] // size))
        if grouped or index < layout.row_outputs
        else output
        for index, output in enumerate(outputs)
    ]
    return tuple(unfolded), (0,) * len(unfolded)


def _stacked(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """``tensor`` with the mapped dimension first."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
