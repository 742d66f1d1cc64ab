"""Matrix products by the compiled kernel, against float64, and where torch answers in its place.

Errors are relative to a result's largest number.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from pfsr_core.models.encoders.layers import FeedForward
from pfsr_core.models.ops import kernel_calls
from pfsr_core.models.ops import matmul as products
from pfsr_core.models.ops.kernels import use_kernels

needs_kernel = pytest.mark.skipif(
    kernel_calls.compiled() is None, reason="pfsr-kernels is not installed or switched off"
)
TOLERANCE = 1e-5

# rows, columns, depth: edges of bands (8, 4), panels (32, 16, 8), blocks (256) and nothing at all
SHAPES = [
    (1, 1, 1),
    (7, 33, 2),
    (8, 32, 16),
    (13, 19, 257),
    (300, 64, 31),
    (257, 5, 70),
    (33, 100, 600),
    (5, 16, 256),
    (0, 3, 4),
    (3, 0, 4),
    (3, 4, 0),
]
LAYOUTS = ["plain", "transposed", "strided"]


@pytest.fixture(params=[16, 8, 4])
def lanes(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every instruction set that this machine has."""
    library = kernel_calls.compiled().library()
    found = library.pfsr_limit_lanes(request.param)
    if found == request.param:
        yield request.param
    library.pfsr_limit_lanes(16)
    if found != request.param:
        pytest.skip(f"this machine has no vectors of {request.param} floats")


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def matrix(layout: str, *shape: int) -> Tensor:
    """Random numbers in one of LAYOUTS."""
    *groups, rows, columns = shape
    if layout == "transposed":
        return torch.randn(*groups, columns, rows).mT
    if layout == "strided":
        return torch.randn(*groups, 2 * rows, 3 * columns)[..., ::2, ::3]
    return torch.randn(*shape)


def close(actual: Tensor, exact: Tensor) -> None:
    assert actual.shape == exact.shape
    if exact.numel():
        assert (actual.double() - exact).abs().max() <= TOLERANCE * exact.abs().max()


def gradients(function: object, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of its product with fixed weights."""
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    output = function(*leaves)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@needs_kernel
class TestMultiply:
    @pytest.mark.parametrize("b_layout", LAYOUTS)
    @pytest.mark.parametrize("a_layout", LAYOUTS)
    @pytest.mark.parametrize(("rows", "columns", "depth"), SHAPES)
    @pytest.mark.usefixtures("lanes")
    def test_float64(
        self, rows: int, columns: int, depth: int, a_layout: str, b_layout: str
    ) -> None:
        torch.manual_seed(rows + columns)
        a, b = matrix(a_layout, rows, depth), matrix(b_layout, depth, columns)
        bias, out = torch.randn(columns), torch.randn(rows, columns)
        exact = a.double() @ b.double()
        close(kernel_calls.multiply(a, b), exact)
        close(kernel_calls.multiply(a, b, bias), exact + bias.double())
        before = out.double()
        kernel_calls.accumulate_product(out, a, b)
        close(out, exact + before)

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.usefixtures("lanes")
    def test_groups(self, layout: str) -> None:
        a, b = matrix(layout, 3, 21, 37), matrix(layout, 3, 37, 45)
        bias = torch.randn(3, 45)
        close(
            kernel_calls.multiply(a, b, bias),
            a.double() @ b.double() + bias.double()[:, None],
        )
        close(kernel_calls.multiply(a, b[:1].expand(3, -1, -1)), a.double() @ b[:1].double())

    def test_nothing_is_written_beside_the_result(self) -> None:
        whole = torch.full((3, 10, 19), 7.0)
        a, b = torch.randn(10, 5), torch.randn(5, 19)
        kernel_calls.accumulate_product(whole[1], a, b)
        assert (whole[0] == 7).all()
        assert (whole[2] == 7).all()

    @pytest.mark.parametrize("shape", [(1, 1100, 400, 90), (5, 130, 500, 150), (1, 30, 1300, 900)])
    @pytest.mark.usefixtures("one_thread")
    def test_threads_change_no_bit(self, shape: tuple[int, int, int, int]) -> None:
        """Each has work enough for two."""
        groups, rows, columns, depth = shape
        a, b = torch.randn(groups, rows, depth), torch.randn(groups, depth, columns)
        one = kernel_calls.multiply(a, b), kernel_calls.multiply(b.mT, a.mT)
        torch.set_num_threads(2)
        assert torch.equal(kernel_calls.multiply(a, b), one[0])
        assert torch.equal(kernel_calls.multiply(b.mT, a.mT), one[1])

    def test_rows_do_not_depend_on_how_many_there_are(self) -> None:
        a, b = torch.randn(300, 90), torch.randn(90, 40)
        assert torch.equal(kernel_calls.multiply(a, b)[:71], kernel_calls.multiply(a[:71], b))

    def test_infinities_of_a_bias_stay(self) -> None:
        bias = torch.tensor([0.0, -torch.inf])
        out = kernel_calls.multiply(torch.randn(40, 3), torch.randn(3, 2), bias)
        assert (out[:, 1] == -torch.inf).all()
        assert out[:, 0].isfinite().all()

    def test_denormals_stay_on_for_others(self) -> None:
        kernel_calls.multiply(torch.randn(3, 3), torch.randn(3, 3))
        assert (torch.tensor(1e-40) * 1.0).item() > 0


@pytest.fixture
def any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel also for little, and with vectors of any width."""
    monkeypatch.setattr(products, "WORK", 0)
    monkeypatch.setattr(products, "LANES", 0)


class TestLinear:
    @pytest.mark.parametrize("kernel", [True, False])
    @pytest.mark.parametrize("shape", [(5,), (3, 50), (2, 3, 20)])
    @pytest.mark.usefixtures("any_work")
    def test_gradients_of_float64(self, shape: tuple[int, ...], kernel: bool) -> None:
        inputs = torch.randn(*shape, 9), torch.randn(21, 9), torch.randn(21)
        with use_kernels(kernel):
            actual = gradients(products.linear, *inputs)
        for found, exact in zip(
            actual, gradients(F.linear, *(x.double() for x in inputs)), strict=True
        ):
            close(found, exact)

    @pytest.mark.usefixtures("any_work")
    def test_clients_with_parameters_of_their_own(self) -> None:
        inputs = torch.randn(3, 2, 40, 9), torch.randn(3, 21, 9), torch.randn(3, 21)
        exact = gradients(vmap(F.linear), *(x.double() for x in inputs))
        for found, wanted in zip(gradients(vmap(products.linear), *inputs), exact, strict=True):
            close(found, wanted)

    @pytest.mark.parametrize("shape", [(5, 9), (5, 0, 9)])
    @pytest.mark.usefixtures("any_work")
    def test_mapped_over_single_rows_and_none(self, shape: tuple[int, ...]) -> None:
        x, weight, bias = torch.randn(shape), torch.randn(4, 9), torch.randn(4)
        found = vmap(products.linear, (0, None, None))(x, weight, bias)
        close(found, F.linear(x.double(), weight.double(), bias.double()))

    @pytest.mark.usefixtures("any_work")
    def test_per_sample_gradients_of_several_clients(self) -> None:
        """Maps inside a map, over a gradient: one with shared parameters, one without."""
        x, weight, bias = torch.randn(2, 3, 40, 9), torch.randn(2, 21, 9), torch.randn(2, 21)

        def mapped(linear: object, *inputs: Tensor) -> tuple[Tensor, ...]:
            def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
                return linear(x, weight, bias).square().sum()

            return vmap(vmap(grad(loss, (0, 1, 2)), (0, None, None)))(*inputs)

        exact = mapped(F.linear, *(tensor.double() for tensor in (x, weight, bias)))
        for found, wanted in zip(mapped(products.linear, x, weight, bias), exact, strict=True):
            close(found, wanted)

    @pytest.mark.usefixtures("any_work")
    def test_second_derivatives(self) -> None:
        inputs = [torch.randn(40, 3), torch.randn(4, 3), torch.randn(4)]

        def penalty(linear: object, *inputs: Tensor) -> Tensor:
            x, weight, bias = inputs
            slope = grad(lambda x: linear(x, weight, bias).pow(3).sum())(x)
            return slope.square().sum()

        actual = grad(lambda *i: penalty(products.linear, *i), argnums=(0, 1, 2))(*inputs)
        doubles = [value.double() for value in inputs]
        exact = grad(lambda *i: penalty(F.linear, *i), argnums=(0, 1, 2))(*doubles)
        for found, wanted in zip(actual, exact, strict=True):
            close(found, wanted)

    @pytest.mark.skipif(
        kernel_calls.compiled() is None or kernel_calls.lanes() < products.LANES,
        reason="no pfsr-kernels, or vectors with which torch is as fast",
    )
    def test_the_kernel_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A control: the comparisons would hold, too, between torch and itself."""
        layer = FeedForward(64, 0.0)
        monkeypatch.setattr(F, "linear", lambda *_: pytest.fail("torch's product ran"))
        layer(torch.randn(2, products.WORK // 64**2 // 8, 64)).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())

    def test_torch_answers_for_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_calls, "multiply", lambda *_: pytest.fail("the kernel ran"))
        x, weight, bias = torch.randn(50, 9), torch.randn(4, 9), torch.randn(4)
        assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))
        assert torch.equal(products.product(x, weight.T), x @ weight.T)

    @needs_kernel
    def test_torch_answers_where_vectors_are_narrow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_calls, "multiply", lambda *_: pytest.fail("the kernel ran"))
        monkeypatch.setattr(kernel_calls, "lanes", lambda: 8)
        x, weight, bias = torch.randn(150, 64), torch.randn(128, 64), torch.randn(128)
        assert torch.equal(products.linear(x, weight, bias), F.linear(x, weight, bias))

    def test_torch_answers_for_other_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernel_calls, "multiply", lambda *_: pytest.fail("the kernel ran"))
        x, weight, bias = torch.randn(150, 64), torch.randn(128, 64), torch.randn(128)
        doubles = [value.double() for value in (x, weight, bias)]
        assert torch.equal(products.linear(*doubles), F.linear(*doubles))
        with torch.autocast("cpu", torch.bfloat16):
            assert products.linear(x, weight, bias).dtype == torch.bfloat16


@pytest.mark.usefixtures("any_work")
class TestOthers:
    @pytest.mark.parametrize("kernel", [True, False])
    def test_grouped(self, kernel: bool) -> None:
        a, table, bias = torch.randn(3, 40, 9), torch.randn(3, 17, 9), torch.randn(3, 17)

        def logits(a: Tensor, table: Tensor) -> Tensor:
            return products.grouped_product(a, table.mT, bias.to(a.dtype))

        with use_kernels(kernel):
            actual = gradients(logits, a, table)
        for found, exact in zip(actual, gradients(logits, a.double(), table.double()), strict=True):
            close(found, exact)

    @pytest.mark.parametrize("kernel", [True, False])
    def test_without_gradients(self, kernel: bool) -> None:
        a, b, out = torch.randn(50, 9), torch.randn(9, 20), torch.randn(50, 20)
        exact = a.double() @ b.double()
        before = out.double()
        with use_kernels(kernel):
            close(products.product(a, b), exact)
            products.add_product(out, a, b)
        close(out, before + exact)
