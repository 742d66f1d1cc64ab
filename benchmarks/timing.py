"""Paired timing: ours and a peer in turn, in one process, so that a busy machine slows both."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], object]
Shape = tuple[int, ...]
Sized = Callable[[Shape], Work]

REPEATS = 9
SECONDS = 6.0  # for all repeats of a pair: a slow one is repeated less often, a very slow one never


@dataclass(frozen=True)
class Measurement:
    """One line of ``docs/performance.jsonl``.

    ``ratio``: how many times the peer's cost ours is, the median over pairs. ``target``: the least
    ratio wanted, or None. Memory has megabytes in ``ours_mb`` and ``peer_mb`` in place of time.
    ``size``: the number on the x axis of a plot (length, clients), where there is one.
    """

    benchmark: str
    case: str
    ours_ms: float | None
    peer: str
    peer_ms: float | None
    ratio: float | None
    target: float | None = None
    holds: bool | None = None
    threads: int = 1
    size: float | None = None
    ours_mb: float | None = None
    peer_mb: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields every line has, and of the others those that say something."""
        optional = ("size", "ours_mb", "peer_mb")
        return {k: v for k, v in asdict(self).items() if k not in optional or v is not None}


def compare(  # noqa: PLR0913 - a line has that many parts
    benchmark: str,
    case: str,
    ours: Work,
    peer: str,
    peer_work: Work,
    *,
    target: float | None = None,
    threads: int = 1,
    size: float | None = None,
    seconds: float | None = None,
) -> Measurement:
    """Times both in turn with ``threads`` threads; medians in milliseconds.

    ``seconds``: for all repetitions together, in place of :data:`SECONDS`.
    """
    with torch_threads(threads):
        pairs = list(_pairs(ours, peer_work, SECONDS if seconds is None else seconds))
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    return Measurement(
        benchmark,
        case,
        ours_ms=_median_ms(mine for mine, _ in pairs),
        peer=peer,
        peer_ms=_median_ms(theirs for _, theirs in pairs),
        ratio=ratio,
        target=target,
        holds=None if target is None else ratio >= target,
        threads=threads,
        size=size,
    )


def against_limit(
    benchmark: str, case: str, ours_ms: float, limit_ms: float | None, **more: Any
) -> Measurement:
    """A figure against a number that it must stay under, or alone. ``more``: further fields."""
    if limit_ms is None:
        return Measurement(benchmark, case, ours_ms, "", None, None, **more)
    ratio = limit_ms / ours_ms
    return Measurement(
        benchmark,
        case,
        ours_ms,
        f"at most {limit_ms:g} ms",
        limit_ms,
        ratio,
        target=1.0,
        holds=ratio >= 1.0,
        **more,
    )


def compare_memory(  # noqa: PLR0913
    benchmark: str,
    case: str,
    ours: Sized,
    peer: str,
    peer_work: Sized,
    shape: Shape,
    target: float | None = None,
) -> Measurement:
    """Peak memory at ``shape`` of each, in a fresh process of its own."""
    mine, theirs = peak_megabytes(ours, shape), peak_megabytes(peer_work, shape)
    ratio = theirs / mine
    holds = None if target is None else ratio >= target
    return Measurement(
        benchmark, case, None, peer, None, ratio, target, holds, ours_mb=mine, peer_mb=theirs
    )


def median_ms(work: Work, repeats: int = REPEATS, threads: int = 1) -> float:
    """The median time of ``work`` alone, in milliseconds."""
    with torch_threads(threads):
        work()
        return _median_ms(_seconds(work) for _ in range(repeats))


def peak_megabytes(work: Sized, shape: Shape) -> float:
    """What ``work(shape)`` adds to the peak of a fresh process; a function of a module."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_here, (work, shape))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """``count`` threads inside, as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> str:
    """Processor, its visible cores, torch: what a figure belongs to."""
    return f"{_processor()}, {os.cpu_count()} cores, torch {torch.__version__}"


def _pairs(ours: Work, peer: Work, seconds: float) -> Iterator[tuple[float, float]]:
    first = _seconds(ours), _seconds(peer)
    if sum(first) > seconds:
        yield _seconds(ours), first[1]
        return
    repeats = min(REPEATS, max(3, int(seconds / sum(first))))
    gc.collect()
    for index in range(repeats):
        if index % 2:
            theirs = _seconds(peer)
            yield _seconds(ours), theirs
        else:
            mine = _seconds(ours)
            yield mine, _seconds(peer)


def _seconds(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _median_ms(seconds: Iterator[float]) -> float:
    return 1000 * statistics.median(seconds)


def _peak_here(work: Sized, shape: Shape) -> float:
    """Runs in the fresh process. A call in small pays for what stays: libraries and buffers."""
    torch.set_num_threads(1)
    work((1, *shape[1:]))()
    before = high_water()
    work(shape)()
    return max(0.1, high_water() - before)


def high_water() -> float:
    """Peak of this process so far, in megabytes.

    On Linux a process inherits ``ru_maxrss`` from the one that started it, but not VmHWM.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
