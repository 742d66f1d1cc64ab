"""The fast scan against its definition, against mamba-ssm's reference, and under ``torch.func``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.func import grad, vjp, vmap

from pfsr_core.models.ops import selective_scan as module
from pfsr_core.models.ops.selective_scan import (
    compiled_scan,
    selective_scan,
    selective_scan_reference,
    selective_scan_step,
)

GOLDEN = Path(__file__).parents[1] / "encoders" / "golden" / "mamba1.safetensors"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def scan_inputs(b: int, L: int, E: int, N: int) -> Inputs:
    """x, dt, A, B, C in float64."""
    generator = torch.Generator().manual_seed(b * 1000 + L)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, dt, A = normal(b, L, E), normal(b, L, E).sigmoid(), -normal(E, N).exp()
    return x, dt, A, normal(b, L, N), normal(b, L, N)


def value_and_gradients(scan: Callable[..., Tensor], inputs: Inputs) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = scan(*leaves)
    weights = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y, *torch.autograd.grad(y, leaves, weights)]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_two_positions_by_hand() -> None:
    """One channel, one state: h_1 = .5 * 2 * 3, h_2 = e^(-1) h_1 + 1 * 4 * (-1)."""
    x, dt = torch.tensor([[[2.0], [4.0]]]), torch.tensor([[[0.5], [1.0]]])
    A, B, C = (
        torch.tensor([[-1.0]]),
        torch.tensor([[[3.0], [-1.0]]]),
        torch.tensor([[[1.0], [10.0]]]),
    )
    expected = torch.tensor([[[3.0], [10 * (3 * 0.36787944 - 4)]]])
    torch.testing.assert_close(selective_scan(x, dt, A, B, C), expected)
    torch.testing.assert_close(selective_scan_reference(x, dt, A, B, C), expected)


@given(b=st.integers(1, 5), L=st.integers(1, 90), E=st.integers(1, 5), N=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_equals_the_reference(b: int, L: int, E: int, N: int) -> None:
    inputs = scan_inputs(b, L, E, N)
    fast = value_and_gradients(selective_scan, inputs)
    slow = value_and_gradients(selective_scan_reference, inputs)
    for actual, expected in zip(fast, slow, strict=True):
        close(actual, expected)


@pytest.mark.parametrize("numbers", [1, 300, 10**9])
def test_tiles_do_not_matter(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scan_inputs(7, 20, 3, 2)
    expected = value_and_gradients(selective_scan_reference, inputs)
    monkeypatch.setattr(module, "TILE_NUMBERS", numbers)
    for actual, wanted in zip(value_and_gradients(selective_scan, inputs), expected, strict=True):
        close(actual, wanted)


def test_large_step_sizes_forget_without_overflow() -> None:
    x, dt, A, B, C = scan_inputs(2, 30, 3, 2)
    results = value_and_gradients(selective_scan, (x, 1e4 * dt, A, B, C))
    assert all(torch.isfinite(tensor).all() for tensor in results)
    close(results[0], 1e4 * dt * x * (B * C).sum(-1, keepdim=True))


def test_gradcheck() -> None:
    inputs = [tensor.requires_grad_() for tensor in scan_inputs(2, 11, 3, 2)]
    assert torch.autograd.gradcheck(selective_scan, inputs)


def test_second_derivatives_are_refused() -> None:
    inputs = [tensor.requires_grad_() for tensor in scan_inputs(1, 4, 2, 2)]
    (first,) = torch.autograd.grad(
        selective_scan(*inputs).square().sum(), inputs[:1], create_graph=True
    )
    with pytest.raises(RuntimeError, match="selective_scan_reference"):
        torch.autograd.grad(first.sum(), inputs[1])


@pytest.mark.parametrize("decays", [None, 0])
def test_mapped_over_clients(decays: int | None) -> None:
    """Clients that share their decays, and clients that each have their own."""
    stacked = [
        torch.stack([scale * tensor for scale in (1.0, 2.0, 3.0)])
        for tensor in scan_inputs(2, 9, 3, 2)
    ]
    A = stacked[2] if decays == 0 else stacked[2][0]
    weights = torch.linspace(-1, 1, 2 * 9 * 3, dtype=torch.float64).reshape(2, 9, 3)

    def loss(A: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
        return (selective_scan(x, dt, A, B, C) * weights).sum()

    rest = [stacked[0], stacked[1], stacked[3], stacked[4]]
    every = (0, 1, 2, 3, 4)
    mapped = vmap(grad(loss, argnums=every), in_dims=(decays, 0, 0, 0, 0))(A, *rest)
    for k in range(3):
        own = A[k] if decays == 0 else A
        alone = grad(loss, argnums=every)(own, *(tensor[k] for tensor in rest))
        for actual, expected in zip(mapped, alone, strict=True):
            close(actual[k], expected)


def test_mapped_output_gradients() -> None:
    """Only the backward pass is mapped: the states kept by an unmapped forward pass are shared."""
    y, pull_back = vjp(selective_scan, *scan_inputs(2, 10, 3, 2))
    directions = torch.randn(4, *y.shape, dtype=torch.float64)
    mapped = vmap(pull_back)(directions)
    for index, direction in enumerate(directions):
        for actual, expected in zip(mapped, pull_back(direction), strict=True):
            close(actual[index], expected)


def test_inputs_stay_as_they_are() -> None:
    inputs = scan_inputs(2, 12, 3, 2)
    kept = [tensor.clone() for tensor in inputs]
    value_and_gradients(selective_scan, inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_steps_equal_the_scan() -> None:
    x, dt, A, B, C = scan_inputs(2, 25, 3, 2)
    h, outputs = torch.zeros(2, 3, 2, dtype=torch.float64), []
    for t in range(25):
        h, y = selective_scan_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], h=h)
        outputs.append(y)
    close(selective_scan(x, dt, A, B, C), torch.stack(outputs, dim=1))


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_reference])
def test_equals_mamba_ssm(scan: Callable[..., Tensor]) -> None:
    golden = {k.removeprefix("scan/"): v for k, v in load_file(GOLDEN).items()}
    leaves = {name: golden[name].requires_grad_() for name in ("x", "dt", "A", "B", "C")}
    y = scan(*leaves.values())
    close(y, golden["output"])
    (y * golden["cotangent"]).sum().backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        close(leaf.grad, golden[f"grad/{name}"])


class TestCompiledScan:
    """mamba-ssm is not there in these tests: a stand-in shows how it is found, called, survived."""

    @pytest.fixture(autouse=True)
    def forget(self) -> Iterator[None]:
        compiled_scan.cache_clear()
        yield
        compiled_scan.cache_clear()

    def install(self, monkeypatch: pytest.MonkeyPatch, scan: object) -> None:
        name = "mamba_ssm.ops.selective_scan_interface"
        interface = ModuleType(name)
        interface.selective_scan_fn = scan  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, interface)

    def test_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
        assert compiled_scan() is None
        assert module._scan_by_kernel(*scan_inputs(1, 3, 2, 2)) is None

    def test_layout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def channels_first(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
            assert all(tensor.is_contiguous() for tensor in (x, dt, A, B, C))
            rows = (tensor.transpose(1, 2) for tensor in (x, dt, B, C))
            x, dt, B, C = rows
            return selective_scan_reference(x, dt, A, B, C).transpose(1, 2)

        self.install(monkeypatch, channels_first)
        inputs = scan_inputs(2, 5, 3, 2)
        y = module._scan_by_kernel(*inputs)
        assert y is not None
        close(y, selective_scan(*inputs))

    def test_failure_falls_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: Tensor) -> Tensor:
            raise RuntimeError("no kernel image is available for execution on the device")

        self.install(monkeypatch, broken)
        assert module._scan_by_kernel(*scan_inputs(1, 3, 2, 2)) is None

    def test_not_asked_for_on_a_cpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.install(monkeypatch, lambda *_: pytest.fail("the CUDA kernel was called"))
        inputs = scan_inputs(1, 3, 2, 2)
        close(selective_scan(*inputs), selective_scan_reference(*inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("use_kernel", ["auto", "never"])
def test_on_cuda(use_kernel: module.UseKernel) -> None:
    inputs = scan_inputs(3, 40, 8, 4)
    expected = value_and_gradients(selective_scan_reference, inputs)
    moved = tuple(tensor.float().cuda() for tensor in inputs)

    def scan(*leaves: Tensor) -> Tensor:
        return selective_scan(*leaves, use_kernel=use_kernel)

    for actual, wanted in zip(value_and_gradients(scan, moved), expected, strict=True):  # type: ignore[arg-type]
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=1e-4, atol=1e-4)
