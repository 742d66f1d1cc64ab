"""The associative block as a whole, a training step on 4,000 tokens, against attention and a GRU.

Both paths are timed: the compiled kernel, where it is installed, and plain PyTorch. Besides: how
the cost grows with the length, what a second thread brings, and how far the block is from what the
machine can do (its own matrix product and copy, measured in the same run).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import step
from benchmarks.peers import Attention
from benchmarks.timing import Measurement, Work, compare, median_ms
from pfsr_core.models.encoders.associative_mamba import AssociativeMamba
from pfsr_core.models.ops import kernels

NAME = "encoder"
TOKENS, DIM, HEADS = 4000, 64, 4
LENGTHS = (50, 200, 1000, 4000)
TWO_THREADS = (50, 1000)
ATTENTION_TARGETS = {200: 1.0, 1000: 1.5, 4000: 3.5}


def measure() -> Iterator[Measurement]:
    """Every path and length against the peers; linearity; threads; memory of the two paths."""
    for path in paths():
        with _path(path):
            yield from _against_peers(path)
            yield from _two_threads(path)
            yield from _linearity(path)
            yield roofline(path)
    yield from step.measure()


def paths() -> list[str]:
    """The paths to time: "plain", and "kernel" where the compiled one is installed."""
    return ["kernel", "plain"] if kernels.compiled() else ["plain"]


def _against_peers(path: str) -> Iterator[Measurement]:
    targeted = path == "kernel"
    for length in LENGTHS:
        ours = training_step(AssociativeMamba(DIM), length)
        case, size = f"{path}, {TOKENS} tokens at L = {length}", float(length)
        peers = {
            "attention": (Attention(DIM, HEADS), ATTENTION_TARGETS.get(length)),
            "GRU": (_Recurrent(DIM), 1.0),
        }
        for peer, (module, target) in peers.items():
            theirs = training_step(module, length)
            wanted = target if targeted else None
            yield compare(NAME, case, ours, peer, theirs, target=wanted, size=size)


def _two_threads(path: str) -> Iterator[Measurement]:
    """One thread is the peer of two: the ratio is the gain."""
    for length in TWO_THREADS:
        step = training_step(AssociativeMamba(DIM), length)
        yield compare(
            NAME,
            f"{path}, two threads at L = {length}",
            with_threads(step, 2),
            "one thread",
            with_threads(step, 1),
            target=1.7 if path == "kernel" else None,
            threads=2,
        )


def _linearity(path: str) -> Iterator[Measurement]:
    """Exponent of the cost a token over the length: 0 is linear in tokens, 1 quadratic."""
    costs = [median_ms(training_step(AssociativeMamba(DIM), length)) for length in LENGTHS]
    exponent = slope([math.log(n) for n in LENGTHS], [math.log(cost) for cost in costs])
    yield Measurement(
        NAME,
        f"{path}, cost a token grows as L to the power of {exponent:.3f}, L = 50 to 4000",
        None,
        "at most 0.05",
        None,
        ratio=exponent,
        target=0.05 if path == "kernel" else None,
        holds=exponent <= 0.05 if path == "kernel" else None,
    )


def roofline(path: str) -> Measurement:
    """The step at L = 200 against the time its arithmetic takes at the machine's own best."""
    step = median_ms(training_step(AssociativeMamba(DIM), 200))
    bound = 1000 * step_flops(200) / peak_flops()
    share = f"{path}, share of the machine's matrix product rate at L = 200"
    return Measurement(NAME, share, step, "its arithmetic at that rate", bound, bound / step)


def step_flops(length: int, chunk: int = 64) -> float:
    """Floating point operations of a training step.

    Projections and the dual form, forward and twice that backward; elementwise work is not counted.
    """
    block = AssociativeMamba(DIM)
    inner, state = block.inner, block.state_dim
    projections = 2 * DIM * (2 * inner + 2 * state + 2 * block.num_heads) + 2 * inner * DIM
    within = min(length, chunk) * 2 * (state + inner)
    between = 8 * inner * state if length > chunk else 0
    return 3.0 * TOKENS * (projections + within + between)


def peak_flops(sizes: tuple[int, ...] = (256, 512, 1024)) -> float:
    """What the best of some matrix products reaches here with one thread, operations a second."""
    return max(2 * size**3 / (median_ms(_product(size)) / 1000) for size in sizes)


def _product(size: int) -> Work:
    return partial(torch.mm, torch.randn(size, size), torch.randn(size, size))


def training_step(module: nn.Module, length: int) -> Work:
    """Forward and backward on TOKENS tokens in sequences of ``length``, gradients of all."""
    x = torch.randn(TOKENS // length, length, DIM, requires_grad=True)
    weights, leaves = torch.ones_like(x), [x, *module.parameters()]

    def work() -> None:
        torch.autograd.grad(module(x), leaves, weights)

    return work


def with_threads(work: Work, count: int) -> Work:
    """The same with ``count`` threads of torch."""

    def run() -> None:
        torch.set_num_threads(count)
        work()

    return run


def slope(x: list[float], y: list[float]) -> float:
    """Least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    pairs = list(zip(x, y, strict=True))
    return sum((a - mean_x) * (b - mean_y) for a, b in pairs) / sum((a - mean_x) ** 2 for a in x)


class _Recurrent(nn.Module):
    """PyTorch's own GRU, (B, L, D) to (B, L, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.recurrence = nn.GRU(dim, dim, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.recurrence(x)[0]
        return output


@contextmanager
def _path(name: str) -> Iterator[None]:
    with kernels.use_kernels(name == "kernel"):
        yield
