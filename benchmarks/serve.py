"""One new interaction: the block's ``step`` against reading the whole history again, and a GRU's.

``step`` carries the state, so its cost does not depend on how long the history is: the case
"after N interactions" shows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from benchmarks.encoder import paths
from benchmarks.timing import Measurement, Work, against_limit, compare, median_ms
from pfsr_core.models.encoders.associative_mamba import AssociativeMamba
from pfsr_core.models.encoders.base import State
from pfsr_core.models.ops import kernels

NAME = "serve"
DIM = 64
LIMIT_MS = 0.020
HISTORIES = (50, 200, 1000, 5000)
CALLS = 200  # of step in one timing: one takes microseconds


def measure() -> Iterator[Measurement]:
    """Both paths: against the limit, a GRU cell, and a forward pass over the history."""
    for path in paths():
        with kernels.use_kernels(path == "kernel"), torch.no_grad():
            block = AssociativeMamba(DIM).eval()
            yield _limit(path, block)
            yield from _against_others(path, block)


def _limit(path: str, block: AssociativeMamba) -> Measurement:
    one = median_ms(steps(block, after(block, 50))) / CALLS
    limit = LIMIT_MS if path == "kernel" else None
    return against_limit(NAME, f"{path}, one step of a block, d {DIM}", one, limit)


def _against_others(path: str, block: AssociativeMamba) -> Iterator[Measurement]:
    cell, x, hidden = nn.GRUCell(DIM, DIM), torch.randn(1, DIM), torch.zeros(1, DIM)
    for length in HISTORIES:
        step, size = steps(block, after(block, length)), float(length)
        case, history = f"{path}, after {length} interactions", torch.randn(1, length, DIM)
        peers = {
            "GRU cell": partial(cell, x, hidden),
            "forward over all": partial(block, history),
        }
        for peer, call in peers.items():
            yield per_call(compare(NAME, case, step, peer, partial(repeat, call), size=size))


def per_call(measured: Measurement) -> Measurement:
    """From CALLS calls to one."""
    assert measured.ours_ms is not None and measured.peer_ms is not None
    return replace(measured, ours_ms=measured.ours_ms / CALLS, peer_ms=measured.peer_ms / CALLS)


def after(block: AssociativeMamba, interactions: int) -> State:
    """The state after that many."""
    state = block.initial_state(1)
    for x in torch.randn(interactions, 1, DIM):
        state = block.step(x, state)[1]
    return state


def steps(block: AssociativeMamba, state: State) -> Work:
    """CALLS steps from ``state``."""
    x = torch.randn(1, DIM)
    return partial(repeat, partial(block.step, x, state))


def repeat(work: Work) -> None:
    """Does the work CALLS times."""
    for _ in range(CALLS):
        work()
