"""The compiled block against plain PyTorch and the sequential reference; and what happens without.

Errors are relative to a tensor's largest number. A head's own parameters have gradients that are
sums over all positions, of terms that nearly cancel each other: no float32 path gets all of them
to 1e-5 (plain PyTorch's are off by up to 4e-5 on blocks like these), so they have a bound of their
own, and where plain PyTorch is far off, the kernel may be, too.
"""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from pfsr_core.models.encoders import associative_mamba
from pfsr_core.models.encoders.associative_mamba import AssociativeMamba
from pfsr_core.models.ops import kernel_calls, kernels
from pfsr_core.models.ops.kernels import use_kernels
from pfsr_core.models.ops.ssd import associative_scan_reference

needs_kernel = pytest.mark.skipif(
    kernel_calls.compiled() is None, reason="pfsr-kernels is not installed or switched off"
)

# embedding_dim, state_dim, conv_width, num_heads, anchored
SIZES = {
    "default": (64, 32, 4, 4, True),
    "forward-only": (64, 32, 4, 4, False),
    "odd": (9, 5, 3, 6, True),
    "odd-forward-only": (10, 17, 1, 5, False),
    "wide-states": (16, 48, 2, 2, True),
}
TOLERANCE = 1e-5
PER_HEAD = {"dt_bias", "A_log", "D", "A_log_anchored", "gate.bias"}
PER_HEAD_TOLERANCE = 1e-4
SMALLEST = 1e-25  # where the exact gradient is zero


def block_of(name: str, seed: int = 0) -> AssociativeMamba:
    """Its parameters moved away from zeros, ones and equal heads."""
    dim, state_dim, conv_width, num_heads, anchored = SIZES[name]
    torch.manual_seed(seed)
    block = AssociativeMamba(
        dim, state_dim=state_dim, conv_width=conv_width, num_heads=num_heads, anchored=anchored
    )
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block


def histories(block: AssociativeMamba, *shape: int) -> Tensor:
    return torch.randn(*shape, block.in_proj.in_features)


def results(block: AssociativeMamba, u: Tensor, weights: Tensor, kernel: bool) -> dict[str, Tensor]:
    """Output and all gradients of ``(block(u) * weights).sum()``."""
    block.zero_grad()
    u = u.clone().requires_grad_()
    with use_kernels(kernel):
        output = block(u)
        (output * weights).sum().backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in block.named_parameters()
    }
    return {"output": output.detach(), "u": u.grad, **gradients}


def close(
    actual: dict[str, Tensor],
    exact: dict[str, Tensor],
    plain: dict[str, Tensor],
    cancelling: set[str] = PER_HEAD,
) -> None:
    for name, expected in exact.items():
        error = (actual[name].double() - expected).abs().max()
        inevitable = 4 * (plain[name].double() - expected).abs().max() if name in cancelling else 0
        tolerance = PER_HEAD_TOLERANCE if name in cancelling else TOLERANCE
        assert error <= tolerance * expected.abs().max() + inevitable + SMALLEST, name


@pytest.fixture
def sequential(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain blocks in this test use the definition, one interaction at a time."""

    def scan(*args: Any) -> Tensor:
        return associative_scan_reference(*args[:-1])

    monkeypatch.setattr(associative_mamba, "ssd_chunked", scan)


@pytest.fixture(params=[16, 8, 4])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every instruction set that this machine has."""
    library = kernel_calls.compiled().library()
    if library.pfsr_limit_lanes(request.param) != request.param:
        library.pfsr_limit_lanes(16)
        pytest.skip(f"this machine has no vectors of {request.param} floats")
    yield request.param
    library.pfsr_limit_lanes(16)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_kernel
class TestSameResults:
    @pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 50, 64, 65, 131])
    @pytest.mark.parametrize("name", SIZES)
    @pytest.mark.usefixtures("sequential")
    def test_sequential_reference_in_float64(self, name: str, length: int, lanes: int) -> None:
        block = block_of(name, seed=length)
        u = histories(block, 3, length)
        weights = torch.randn_like(u)
        actual, plain = (results(block, u, weights, kernel) for kernel in (True, False))
        exact = results(copy.deepcopy(block).double(), u.double(), weights.double(), True)
        close(actual, exact, plain)

    @pytest.mark.parametrize("length", [200, 1000])
    def test_long_histories(self, length: int) -> None:
        block = block_of("default")
        u = histories(block, 2, length)
        weights = torch.randn_like(u)
        actual, plain = (results(block, u, weights, kernel) for kernel in (True, False))
        exact = results(copy.deepcopy(block).double(), u.double(), weights.double(), False)
        close(actual, exact, plain)

    def test_the_kernel_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A control: the comparisons would hold, too, between the plain path and itself."""
        block = block_of("default")
        monkeypatch.setattr(block, "_mix", lambda *_: pytest.fail("the plain path ran"))
        block(histories(block, 1, 3)).sum().backward()

    @pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
    def test_nothing_to_do(self, shape: tuple[int, int]) -> None:
        block = block_of("odd")
        u = histories(block, *shape).requires_grad_()
        output = block(u)
        output.sum().backward()
        assert output.shape == u.shape
        assert all(not p.grad.any() for p in block.parameters())

    def test_steps_that_underflow(self) -> None:
        """Decays below the smallest float: exp(a c) with a c about -30,000."""
        block = block_of("default")
        with torch.no_grad():
            block.dt_bias.fill_(40.0)
        u = histories(block, 1, 150)
        weights = torch.randn_like(u)
        actual, plain = (results(block, u, weights, kernel) for kernel in (True, False))
        exact = results(copy.deepcopy(block).double(), u.double(), weights.double(), False)
        close(actual, exact, plain, cancelling=set(exact))

    def test_inputs_are_not_written(self) -> None:
        block = block_of("odd")
        u = histories(block, 2, 70).requires_grad_()
        kept = copy.deepcopy(block.state_dict()), u.detach().clone()
        block(u).sum().backward()
        assert torch.equal(u, kept[1])
        assert all(torch.equal(value, kept[0][name]) for name, value in block.state_dict().items())

    def test_views_in_any_layout(self) -> None:
        block = block_of("odd")
        u = histories(block, 7, 4).transpose(0, 1)
        weights = torch.randn(7, 4, u.shape[-1]).transpose(0, 1)
        strided = results(block, u, weights, True)
        plain = results(block, u.contiguous(), weights.contiguous(), True)
        assert all(torch.equal(strided[name], plain[name]) for name in plain)

    def test_without_gradients(self) -> None:
        block = block_of("default")
        u = histories(block, 2, 90)
        expected = results(block, u, u, True)["output"]
        with torch.no_grad():
            assert torch.equal(block(u), expected)

    def test_denormals_stay_on_for_others(self) -> None:
        block = block_of("odd")
        block(histories(block, 1, 3)).sum().backward()
        assert (torch.tensor(1e-40) * 1.0).item() > 0


@needs_kernel
class TestThreads:
    @pytest.mark.parametrize("rows", [1, 3, 40])
    @pytest.mark.parametrize("name", ["default", "odd", "odd-forward-only"])
    def test_same_results(self, name: str, rows: int, threads: Any) -> None:
        block = block_of(name)
        u = histories(block, rows, 150)
        weights = torch.randn_like(u)
        one = results(block, u, weights, True)
        threads(3)
        three, again = results(block, u, weights, True), results(block, u, weights, True)
        plain = results(block, u, weights, False)
        threads(1)
        exact = results(copy.deepcopy(block).double(), u.double(), weights.double(), False)
        assert all(torch.equal(three[name], again[name]) for name in three)
        close(three, exact, plain)
        if rows >= 3:  # with fewer rows than threads the heads are divided, and sums regrouped
            assert all(torch.equal(three[name], one[name]) for name in one)

    def test_same_bits_again(self) -> None:
        block = block_of("default")
        u = histories(block, 20, 50)
        weights = torch.randn_like(u)
        first, second = (results(block, u, weights, True) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


@needs_kernel
class TestCausality:
    @pytest.mark.parametrize("changed", [1, 63, 64, 100])
    def test_a_later_change_leaves_earlier_outputs(self, changed: int) -> None:
        block = block_of("default")
        u, other = histories(block, 2, 130), histories(block, 2, 130)
        other[:, :changed] = u[:, :changed]
        before, after = block(u), block(other)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed])

    def test_right_padding_changes_nothing(self) -> None:
        block = block_of("default")
        u = histories(block, 2, 70)
        padded = torch.cat([u, torch.zeros(2, 130, u.shape[-1])], dim=1)
        torch.testing.assert_close(block(padded)[:, :70], block(u), rtol=1e-6, atol=1e-6)

    def test_rows_do_not_see_each_other(self) -> None:
        block = block_of("default")
        u = histories(block, 3, 70)
        assert torch.equal(block(u)[1:2], block(u[1:2]))


@needs_kernel
class TestLengths:
    @pytest.mark.parametrize("count", [1, 3])
    def test_as_if_each_row_ended_there(self, count: int, threads: Any) -> None:
        threads(count)
        block = block_of("odd")
        lengths = torch.tensor([70, 0, 131, 64])
        u = histories(block, 4, 131)
        weights = torch.randn_like(u)
        u.requires_grad_()
        output = kernels.mix(u, block._mixer_parameters(), associative_mamba.RMS_NORM_EPS, lengths)
        (output * weights).sum().backward()
        grad_u, gradients = u.grad, {n: p.grad for n, p in block.named_parameters()}
        u.grad = None
        block.zero_grad()
        for row, length in enumerate(lengths.tolist()):
            alone = block(u[row : row + 1, :length])
            torch.testing.assert_close(output[row, :length], alone[0], rtol=1e-6, atol=1e-6)
            assert not output[row, length:].any()
            (alone * weights[row, :length]).sum().backward()
        torch.testing.assert_close(grad_u, u.grad, rtol=1e-5, atol=1e-5)
        for name, parameter in block.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)

    def test_lengths_beyond_the_row_are_those_of_the_row(self) -> None:
        block = block_of("odd")
        u = histories(block, 2, 20)
        parameters = block._mixer_parameters()
        output = kernels.mix(
            u, parameters, associative_mamba.RMS_NORM_EPS, torch.tensor([10**9, -5])
        )
        assert torch.equal(output[0], block(u)[0])
        assert not output[1].any()

    def test_other_integers_are_refused(self) -> None:
        block = block_of("odd")
        u, lengths = histories(block, 2, 20), torch.tensor([3, 4], dtype=torch.int32)
        with pytest.raises(TypeError, match="give a contiguous tensor of int64"):
            kernels.mix(u, block._mixer_parameters(), associative_mamba.RMS_NORM_EPS, lengths)


@needs_kernel
class TestFunctionTransforms:
    def test_per_sample_gradients(self) -> None:
        block = block_of("default")
        u, weights = histories(block, 3, 70), histories(block, 70)
        parameters = {name: p.detach() for name, p in block.named_parameters()}

        def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
            return (functional_call(block, values, (sample[None],))[0] * weights).sum()

        batched = vmap(grad(loss), in_dims=(None, 0))(parameters, u)
        for index, sample in enumerate(u):
            for name, gradient in grad(loss)(parameters, sample).items():
                torch.testing.assert_close(batched[name][index], gradient, rtol=1e-5, atol=1e-5)

    def test_clients_with_parameters_of_their_own(self) -> None:
        block = block_of("odd")
        u, weights = histories(block, 2, 3, 70), histories(block, 3, 70)
        stacked = {
            name: torch.stack([p.detach(), 1.1 * p.detach()])
            for name, p in block.named_parameters()
        }

        def loss(values: dict[str, Tensor], batch: Tensor) -> Tensor:
            return (functional_call(block, values, (batch,)) * weights).sum()

        batched = vmap(grad(loss))(stacked, u)
        for client in range(2):
            values = {name: tensor[client] for name, tensor in stacked.items()}
            for name, gradient in grad(loss)(values, u[client]).items():
                torch.testing.assert_close(batched[name][client], gradient, rtol=1e-5, atol=1e-5)

    def test_samples_of_several_clients(self) -> None:
        """A map inside a map: groups are mapped again."""
        block = block_of("odd")
        u = histories(block, 2, 3, 20)
        stacked = {
            name: torch.stack([p.detach(), 1.1 * p.detach()])
            for name, p in block.named_parameters()
        }

        def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
            return functional_call(block, values, (sample[None],)).square().sum()

        both = vmap(vmap(grad(loss), in_dims=(None, 0)))(stacked, u)
        for client in range(2):
            values = {name: tensor[client] for name, tensor in stacked.items()}
            for name, gradient in grad(loss)(values, u[client, 1]).items():
                torch.testing.assert_close(both[name][client, 1], gradient, rtol=1e-4, atol=1e-4)

    def test_second_derivatives_are_refused(self) -> None:
        block = block_of("odd")

        def squared_gradient(u: Tensor) -> Tensor:
            return grad(lambda u: block(u).square().sum())(u).square().sum()

        with pytest.raises(RuntimeError, match="differentiable once"):
            grad(squared_gradient)(histories(block, 2, 9))


@needs_kernel
class TestStep:
    @pytest.mark.parametrize("name", SIZES)
    def test_item_by_item_equals_the_whole(self, name: str, lanes: int) -> None:
        block = block_of(name)
        u = histories(block, 3, 70)
        with torch.no_grad():
            state, outputs = block.initial_state(3), []
            for t in range(u.shape[1]):
                output, state = block.step(u[:, t], state)
                outputs.append(output)
            whole = block(u)
        scale = float(whole.abs().max())
        error = (torch.stack(outputs, dim=1) - whole).abs().max()
        assert error <= TOLERANCE * scale

    def test_state_and_output_of_the_plain_path(self) -> None:
        block = block_of("odd")
        u = histories(block, 2, 5)
        state = block.initial_state(2)
        with torch.no_grad():
            for t in range(5):
                kept = {name: tensor.clone() for name, tensor in state.items()}
                output, after = block.step(u[:, t], state)
                with use_kernels(False):
                    expected, expected_after = block.step(u[:, t], state)
                torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(after, expected_after, rtol=1e-5, atol=1e-5)
                assert all(torch.equal(kept[name], state[name]) for name in kept)
                state = after

    def test_strided_inputs(self) -> None:
        block = block_of("odd")
        u = histories(block, 4)
        with torch.no_grad():
            _, state = block.step(u, block.initial_state(4))
            every_other, _ = block.step(u[::2], {name: t[::2] for name, t in state.items()})
            whole, _ = block.step(u, state)
        assert torch.equal(every_other, whole[::2])

    def test_differentiable_where_gradients_are_wanted(self) -> None:
        block = block_of("odd")
        output, _ = block.step(histories(block, 2), block.initial_state(2))
        output.sum().backward()
        assert block.in_proj.weight.grad.any()

    def test_mapped_over_users(self) -> None:
        block = block_of("odd")
        u, state = histories(block, 3, 1), block.initial_state(3)
        with torch.no_grad():
            mapped, _ = vmap(block.step)(u, {name: t[:, None] for name, t in state.items()})
            whole, _ = block.step(u[:, 0], state)
        torch.testing.assert_close(mapped[:, 0], whole, rtol=1e-5, atol=1e-5)


class TestWithout:
    """Where the kernel does not apply or is not there, the plain path answers."""

    @pytest.fixture(autouse=True)
    def ask_again(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.delenv("PFSR_KERNELS", raising=False)
        kernel_calls.compiled.cache_clear()
        yield
        kernel_calls.compiled.cache_clear()

    def plain_path_answers(self) -> bool:
        block = block_of("odd")
        u = histories(block, 1, 3)
        with use_kernels(False):
            expected = block(u)
        return kernel_calls.compiled() is None and torch.equal(block(u), expected)

    def test_not_installed(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "pfsr_kernels", None)
        with caplog.at_level(logging.INFO, "pfsr_core.models.ops.kernel_calls"):
            assert self.plain_path_answers()
        assert [record.levelname for record in caplog.records] == ["INFO"]

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PFSR_KERNELS", "never")
        assert self.plain_path_answers()

    def test_unknown_switch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PFSR_KERNELS", "off")
        with pytest.raises(ValueError, match="PFSR_KERNELS=off: give auto, or never"):
            kernel_calls.compiled()

    @pytest.mark.parametrize("problem", ["does not load", "of another interface"])
    def test_a_broken_library(
        self,
        problem: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        broken = types.ModuleType("pfsr_kernels")
        broken.ABI_VERSION = kernel_calls.ABI_VERSION + (problem == "of another interface")
        broken.library = lambda: importlib.import_module("ctypes").CDLL("/nowhere/lib.so")
        monkeypatch.setitem(sys.modules, "pfsr_kernels", broken)
        assert self.plain_path_answers()
        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_other_numbers(self) -> None:
        block = block_of("odd")
        assert not kernels.applies_to(block.D.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not kernels.applies_to(block.D)

    def test_another_device(self) -> None:
        assert not kernels.applies_to(torch.zeros(1, device="meta"))
