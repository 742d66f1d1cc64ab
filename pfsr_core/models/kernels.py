"""The associative Mamba block by the compiled kernel of the distribution ``pfsr-kernels``.

The kernel computes a whole block, projections included, forward and backward, in float32 on the
CPU. It is used where it is installed, and never required: without it, for other numbers or
devices, and for second derivatives plain PyTorch does the same. ``PFSR_KERNELS=never`` in the
environment, or ``use_kernels(False)`` around a piece of code, turns it off.

Letters in shapes: R rows (sequences), G groups of R / G rows with parameters of their own,
L length, D model width, I inner width, H heads, P = I / H, N states, K taps.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
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
    conv_bias: Tensor  # (I + 2N,)
    norm_weight: Tensor  # (I,)
    dt_bias: Tensor  # (H,)
    A_log: Tensor  # (H,)
    D: Tensor  # (H,)
    A_log_anchored: Tensor | None = None  # (H,)
    gate_bias: Tensor | None = None  # (H,)
    gate_weight: Tensor | None = None  # (H, D)


A_LOG = MixerParameters._fields.index("A_log")


class Mixer(NamedTuple):
    """What is no tensor. ``plain(u, parameters)`` is the same map in plain PyTorch, one group."""

    eps: float
    plain: Callable[[Tensor, MixerParameters], Tensor]


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


def applies_to(*tensors: Tensor) -> bool:
    """Whether the kernel is there, switched on, and computes with tensors like these."""
    return (
        _enabled
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and compiled() is not None
        and not torch.is_autocast_enabled("cpu")
    )


def mix(
    u: Tensor, parameters: MixerParameters, mixer: Mixer, lengths: Tensor | None = None
) -> Tensor:
    """The block's output (R, L, D) for u (R, L, D), differentiable in u and the parameters.

    ``lengths`` (R,) of int64 in [0, L]: positions from there on cost nothing, give zeros and pass
    no gradient on. Without lengths every position counts. Works under ``torch.func``'s ``grad``
    and ``vmap``; second derivatives are those of ``mixer.plain``.
    """
    present = [tensor for tensor in parameters if tensor is not None]
    keep = torch.is_grad_enabled()
    out, _ = _Mix.apply(mixer, keep, lengths, u, *present)  # type: ignore[no-untyped-call]
    return cast(Tensor, out)


# --- calls of the library ------------------------------------------------------------------------


class _Call:
    """Shape and addresses of one call; holds the tensors behind the addresses."""

    def __init__(self, eps: float, u: Tensor, parameters: Sequence[Tensor]) -> None:
        self.module = cast(Any, compiled())
        self.library = self.module.library()
        self.u = u.contiguous()
        self.parameters = [tensor.contiguous() for tensor in parameters]
        _, _, conv, _, norm, dt_bias, A_log, *_ = parameters
        heads, inner = dt_bias.shape[-1], norm.shape[-1]
        self.shape = self.module.Shape(
            rows=u.shape[0],
            length=u.shape[1],
            groups=A_log.numel() // heads,
            dim=u.shape[-1],
            inner=inner,
            heads=heads,
            state=(conv.shape[-3] - inner) // 2,
            taps=conv.shape[-1],
            anchored=len(parameters) == len(MixerParameters._fields),
            threads=torch.get_num_threads(),
            eps=eps,
        )

    def addresses(self, tensors: Sequence[Tensor]) -> Any:
        return byref(self.module.Parameters(*(tensor.data_ptr() for tensor in tensors)))

    def run(self, function: str, *arguments: Any) -> None:
        call = getattr(self.library, function)
        status = call(byref(self.shape), self.addresses(self.parameters), *arguments)
        if status == 1:
            raise MemoryError("pfsr-kernels: no memory for a pass over the associative block")
        if status:
            raise ValueError("pfsr-kernels: sizes of the associative block do not fit together")


def _forward(
    mixer: Mixer, keep: bool, lengths: Tensor | None, u: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The output, and what the backward pass reads of every row (R, floats)."""
    call = _Call(mixer.eps, u, parameters)
    out = torch.empty_like(call.u)
    floats = call.library.pfsr_kept_floats(byref(call.shape)) if keep else 0
    kept = u.new_empty(len(u), floats)
    call.run(
        "pfsr_forward",
        call.u.data_ptr(),
        None if lengths is None else lengths.data_ptr(),
        out.data_ptr(),
        kept.data_ptr() if keep else None,
    )
    return out, kept


def _backward(
    mixer: Mixer,
    lengths: Tensor | None,
    grad_out: Tensor,
    kept: Tensor,
    u: Tensor,
    *parameters: Tensor,
) -> tuple[Tensor, ...]:
    """Gradients of u and of every parameter."""
    call = _Call(mixer.eps, u, parameters)
    grad_out, kept = grad_out.contiguous(), kept.contiguous()
    grad_u = torch.empty_like(call.u)
    make = torch.empty_like if len(u) and u.shape[1] else torch.zeros_like
    gradients = [make(tensor) for tensor in call.parameters]
    call.run(
        "pfsr_backward",
        call.u.data_ptr(),
        None if lengths is None else lengths.data_ptr(),
        kept.data_ptr(),
        grad_out.data_ptr(),
        grad_u.data_ptr(),
        call.addresses(gradients),
    )
    return grad_u, *gradients


def step(
    u: Tensor, state: dict[str, Tensor], parameters: Sequence[Tensor], eps: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """One interaction: u (R, D) and the state before it to the output and the state after it."""
    call = _Call(eps, u[:, None], parameters)
    before = {name: tensor.contiguous() for name, tensor in state.items()}
    after = {name: torch.empty_like(tensor) for name, tensor in before.items()}
    out = torch.empty_like(call.u)
    states = [
        call.module.State(*(tensor.data_ptr() for tensor in some.values()))
        for some in (before, after)
    ]
    call.run("pfsr_step", call.u.data_ptr(), byref(states[0]), out.data_ptr(), byref(states[1]))
    return out[:, 0], after


# --- autograd, and vmap by folding the mapped dimension into the groups --------------------------


class _Mix(torch.autograd.Function):
    """Mixer, keep, lengths, u and parameters to the output and what the backward pass reads."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        return _forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mixer, _, lengths, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(lengths, output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> Any:
        lengths, kept, *tensors = ctx.saved_tensors
        if grad_out is None:
            return (None,) * (3 + len(tensors))
        gradients = _MixBackward.apply(ctx.mixer, lengths, grad_out, kept, *tensors)  # type: ignore[no-untyped-call]
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
        ctx.mixer, lengths, grad_out, _, *tensors = inputs
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
        return None, None, by_grad_out, None, *by_tensors

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        return _folded(_MixBackward, info.batch_size, in_dims, inputs, _Layout(5, 1))


def _plain(mixer: Mixer, lengths: Tensor | None, u: Tensor, *parameters: Tensor) -> Tensor:
    """The same map in plain PyTorch, groups and lengths included."""

    def of_group(rows: Tensor, *parameters: Tensor) -> Tensor:
        return mixer.plain(rows, MixerParameters(*parameters))

    A_log = parameters[A_LOG]
    if A_log.dim() > 1:
        out = torch.func.vmap(of_group)(u.unflatten(0, (len(A_log), -1)), *parameters).flatten(0, 1)
    else:
        out = of_group(u, *parameters)
    if lengths is None:
        return out
    live = torch.arange(out.shape[1]) < lengths[:, None]
    return out.masked_fill(~live[..., None], 0.0)


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
