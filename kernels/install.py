"""Installs pfsr-kernels for the Python that runs this, where there is a compiler; else says so.

Never fails: without the kernel plain PyTorch computes the same, slower.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> None:
    compiler = os.environ["CXX"] = os.environ.get("CXX") or "c++"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return say(f"there is no compiler {compiler} (set CXX to one)")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--no-deps", "--force-reinstall", str(Path(__file__).parent)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    if built.returncode:
        errors = [line for line in built.stderr.splitlines() if "error" in line.lower()]
        return say(f"{compiler} did not build it ({errors[0].strip() if errors else 'pip failed'})")
    return None


def say(why: str) -> None:
    print(f"pfsr-kernels is not installed: {why}. Plain PyTorch is used, with the same results.")  # noqa: T201


if __name__ == "__main__":
    main()
