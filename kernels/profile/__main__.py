"""``python kernels/profile [length] [threads]``: where a training step's time goes (x86-64, Linux).

Samples the C functions, built without inlining, and sets the arithmetic of the matrix products
beside what torch's sgemm reaches on this machine in the same run, and its memory's triad.
"""

from __future__ import annotations

import bisect
import collections
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "build_backend"))
CHUNK, DIM, INNER, HEADS, STATE, WIDTH = 64, 64, 128, 4, 32, 336
NOT_INLINED = [f"-fno-inline-{what}" for what in ("functions", "small-functions")]
GROUPS = {  # words in a function's name, the first that fits
    "matrix products": ("multiply<",),
    "convolution and silu": ("convolve",),
    "gate and norm": ("leave_", "gate_and_norm"),
    "decays, weights within a chunk": ("find_", "mixing", "decays", "forward_chunk"),
    "states: scaling, transposing": ("state", "advance", "read_backward", "scale_rows"),
    "rest of the backward pass": ("backward", "drive"),
    "rest of the forward pass": ("forward", "project", "row"),
}


def main(length: str = "200", threads: str = "1") -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        program = build(Path(work))
        samples = Path(work, "samples")
        command = [str(program), length, threads, str(samples)]
        times = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        forward, backward = (float(ms) for ms in times)
        shares = by_group(program, samples)
    work_done = multiply_adds(int(length)) * 2e-6
    say(
        f"forward {forward:.2f} ms, backward {backward:.2f} ms at L = {length}, {threads} thread(s)"
    )
    say(f"{work_done / (forward + backward):.0f} GFLOP/s in products over the whole step")
    say(f"sgemm of torch {sgemm(torch):.0f} GFLOP/s, triad {triad(torch):.1f} GB/s")
    for name, share in shares:
        say(f"{share:6.1%}  {name}")


def build(work: Path) -> Path:
    from compile_library import compile_library  # noqa: PLC0415

    program = work / "sampled"
    compile_library(
        program,
        work,
        sources=[HERE / "sampled.cpp"],
        flags=[*NOT_INLINED, "-fno-inline-functions-called-once"],
        link=["-no-pie"],
    )
    return program


def by_group(program: Path, samples: Path) -> list[tuple[str, float]]:
    listing = subprocess.run(["nm", "-C", program], check=True, capture_output=True, text=True)
    lines = [line.split(maxsplit=2) for line in listing.stdout.splitlines() if line[:1] != " "]
    symbols = sorted((int(address, 16), name) for address, kind, name in lines if kind in "tTwW")
    starts = [address for address, _ in symbols]
    last = starts[-1] + 2**20
    counts: collections.Counter[str] = collections.Counter()
    for sample in samples.read_text().split():
        at = int(sample, 16)
        inside = starts[0] <= at < last
        counts[group_of(symbols[bisect.bisect(starts, at) - 1][1] if inside else "")] += 1
    return [(name, count / counts.total()) for name, count in counts.most_common()]


def group_of(function: str) -> str:
    name = function.split("(anonymous namespace)::", 1)[-1]
    fits = (group for group, words in GROUPS.items() if any(word in name for word in words))
    return next(fits, "elsewhere (packing, sums over units, the system)")


def multiply_adds(length: int) -> float:
    """Of a training step on 4,000 tokens, both directions, as the passes are written."""
    total = 0.0
    for start in range(0, length, CHUNK):
        q = min(CHUNK, length - start)
        before, after = start > 0, start + q < length
        half = q * (q + 8) / 2
        states = q * 2 * STATE * INNER
        forward = (q + 3) * WIDTH * DIM + half * STATE + half * INNER + q * INNER * DIM
        forward += states * (before + after)
        backward = (3 * q + 3) * WIDTH * DIM + 2 * q * INNER * DIM + half * (3 * STATE + 2 * INNER)
        backward += states * (2 * before + 2 * after)
        total += forward + backward
    return total * (4000 // length)


def sgemm(torch: Any) -> float:
    a = torch.randn(1500, 1500)
    return 2 * 1500**3 / best(lambda: a @ a) / 1e9


def triad(torch: Any) -> float:
    a, b, c = (torch.zeros(2**25) for _ in range(3))
    return 3 * 4 * 2**25 / best(lambda: torch.add(b, c, alpha=3.0, out=a)) / 1e9


def best(work: Any) -> float:
    times = []
    for _ in range(8):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def say(line: str) -> None:
    print(line)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
