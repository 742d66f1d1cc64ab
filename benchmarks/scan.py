"""The scan alone, forward and backward: our dual form in plain PyTorch against other scans.

Peers: mamba-ssm's reference (theirs where that package is installed, else a stand-in of the same
structure) and mambapy's parallel scan (package ``mambapy``). Theirs are Mamba-1's, with a decay for
each of width x states, ours has one a head: the task is the same, the mathematics is what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from benchmarks.peers import MissingPeerError, mambapy_scan, reference_scan
from benchmarks.timing import Measurement, Shape, Work, compare, compare_memory
from pfsr_core.models.ops.ssd import Direction, ScanInputs, ssd_chunked

WIDTH, STATES, HEADS, CHUNK = 128, 16, 4, 64
SHAPES: tuple[Shape, ...] = ((64, 50), (64, 200), (16, 1000))
NAME = "scan"


def measure() -> Iterator[Measurement]:
    """Every shape against every peer; both directions against one; memory."""
    reference, label = reference_scan()
    for batch, length in SHAPES:
        case, size = f"{batch} x {length}, width {WIDTH}, {STATES} states", float(length)
        ours = dual_form((batch, length))
        peer = channelwise(reference, (batch, length))
        yield compare(NAME, case, ours, label, peer, target=20.0, size=size)
        yield from _against_mambapy(case, (batch, length), ours)
        both, case = both_directions((batch, length)), f"{case}, both directions"
        yield compare(NAME, case, both, "one direction", ours, target=1 / 1.3, size=size)


def _against_mambapy(case: str, shape: Shape, ours: Work) -> Iterator[Measurement]:
    try:
        peer = channelwise(mambapy_scan(), shape)
    except MissingPeerError as error:
        yield Measurement(NAME, case, None, f"mambapy: {error}", None, None)
        return
    yield compare(NAME, case, ours, "mambapy", peer, target=5.0, size=float(shape[1]))
    yield compare_memory(
        NAME, f"{case}, memory", dual_form, "mambapy", _mambapy_work, shape, target=5.0
    )


def dual_form(shape: Shape) -> Work:
    """One direction, forward and backward."""
    return _dual_form(shape, anchored=False)


def both_directions(shape: Shape) -> Work:
    """Both directions, forward and backward."""
    return _dual_form(shape, anchored=True)


def _dual_form(shape: Shape, anchored: bool) -> Work:
    batch, length = shape
    x, dt, _, B, C = _inputs(batch, length)
    x = x.detach().unflatten(-1, (HEADS, -1)).requires_grad_()
    dt = dt.detach()[..., :HEADS].clone().requires_grad_()
    a = (-torch.rand(HEADS)).requires_grad_()
    other = (-torch.rand(HEADS)).requires_grad_() if anchored else None
    gate = torch.rand(batch, length, HEADS).requires_grad_() if anchored else None
    direction = None if other is None or gate is None else Direction(other, gate)
    leaves = [leaf for leaf in (x, dt, B, C, a, other, gate) if leaf is not None]

    def work() -> None:
        y = ssd_chunked(ScanInputs(x, dt, B, C), a, direction, CHUNK)
        torch.autograd.grad(y, leaves, _weights(tuple(y.shape)))

    return work


def channelwise(scan: object, shape: Shape) -> Work:
    """A Mamba-1 scan ``scan(x, dt, A, B, C)``, forward and backward."""
    leaves = _inputs(*shape)
    assert callable(scan)

    def work() -> None:
        y = scan(*leaves)
        torch.autograd.grad(y, leaves, _weights(tuple(y.shape)))

    return work


def _mambapy_work(shape: Shape) -> Work:
    return channelwise(mambapy_scan(), shape)


def _inputs(batch: int, length: int) -> tuple[Tensor, ...]:
    """x, dt (B, L, WIDTH), A (WIDTH, STATES), B and C (B, L, STATES), all leaves."""
    torch.manual_seed(0)
    x, dt = torch.randn(batch, length, WIDTH), 0.1 * torch.rand(batch, length, WIDTH)
    B, C = torch.randn(batch, length, STATES), torch.randn(batch, length, STATES)
    A = -torch.arange(1.0, STATES + 1).repeat(WIDTH, 1)
    return tuple(tensor.requires_grad_() for tensor in (x, dt, A, B, C))


@cache
def _weights(shape: Shape) -> Tensor:
    return torch.ones(shape)
