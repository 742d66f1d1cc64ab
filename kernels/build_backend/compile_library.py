"""Compiles ``src`` into one shared library that picks its vector instructions at run time.

The passes are compiled once for each instruction set and linked side by side. ``$CXX`` names the
compiler (g++ or clang++; c++ unless set) and ``$CXXFLAGS`` adds flags.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src"

# No -ffast-math: the order of every sum stays as written, so results are the same in every build.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-pthread",
]

AVX2 = ["-mavx2", "-mfma", "-mbmi", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512cd", "-mavx512dq", "-mavx512vl"]

INSTRUCTION_SETS = {
    "x86_64": {
        "passes_baseline": [],
        "passes_avx2": AVX2,
        "passes_avx512": [*AVX512, "-mprefer-vector-width=512"],
    }
}


def compile_library(
    target: Path,
    work: Path,
    sources: Sequence[Path] = (),
    flags: Sequence[str] = (),
    link: Sequence[str] = ("-shared",),
) -> None:
    """Write the shared library ``target``; object files go to the directory ``work``.

    With further ``sources`` and other ``flags`` and ``link`` flags it may be a program. Raises
    ``subprocess.CalledProcessError``, the compiler's messages on stderr, or ``FileNotFoundError``
    without a compiler.
    """
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    added = [*flags, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    x86 = ["-DPFSR_X86"] if machine == "x86_64" else []
    sets = INSTRUCTION_SETS.get(machine, {"passes_baseline": []})

    def compile_one(source: Path, name: str, flags: list[str]) -> str:
        made = str(work / f"{name}.o")
        command = [*compiler, *FLAGS, *x86, *flags, *added, "-c", str(source), "-o", made]
        subprocess.run(command, check=True)
        return made

    wanted: list[tuple[Path, str, list[str]]] = [
        (source, source.stem, []) for source in (SOURCES / "pfsr_kernels.cpp", *sources)
    ]
    for name, chosen in sets.items():
        wanted.append((SOURCES / "passes.cpp", name, [f"-DPFSR_PASSES={name}", *chosen]))
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda arguments: compile_one(*arguments), wanted))
    command = [*compiler, "-pthread", *link, *added, *objects, "-o", str(target)]
    subprocess.run(command, check=True)
