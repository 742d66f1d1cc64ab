"""Compiles ``src`` into one shared library that picks its vector instructions at run time.

The passes are compiled once for each instruction set and linked side by side. ``$CXX`` names the
compiler (g++ or clang++; c++ unless set) and ``$CXXFLAGS`` adds flags.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
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


def compile_library(target: Path, work: Path) -> None:
    """Write the shared library ``target``; object files go to the directory ``work``.

    Raises ``subprocess.CalledProcessError`` with the compiler's messages on stderr, or
    ``FileNotFoundError`` without a compiler.
    """
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    added = shlex.split(os.environ.get("CXXFLAGS", ""))
    machine = {"AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    x86 = ["-DPFSR_X86"] if machine == "x86_64" else []
    sets = INSTRUCTION_SETS.get(machine, {"passes_baseline": []})

    def compile_one(source: str, name: str, flags: list[str]) -> str:
        made = str(work / f"{name}.o")
        command = [*compiler, *FLAGS, *x86, *flags, *added, "-c", str(SOURCES / source), "-o", made]
        subprocess.run(command, check=True)
        return made

    wanted = [("pfsr_kernels.cpp", "interface", [])]
    wanted += [("passes.cpp", name, [f"-DPFSR_PASSES={name}", *f]) for name, f in sets.items()]
    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(lambda arguments: compile_one(*arguments), wanted))
    subprocess.run(
        [*compiler, "-shared", "-pthread", *added, *objects, "-o", str(target)], check=True
    )
