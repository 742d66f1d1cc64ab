"""What this program runs on: versions and machine, for the record beside every result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("pfsr", "flwr", "torch", "numpy", "pandas", "ray", "safetensors")


def environment() -> dict[str, Any]:
    """Python, platform, processors, and the versions of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: installed(name) or "" for name in PACKAGES},
        "commit": commit(),
    }


def commit() -> str:
    """The commit of this source tree; $PFSR_COMMIT where it is no checkout, else ""."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        completed = None
    revision = completed.stdout.strip() if completed and completed.returncode == 0 else ""
    return revision or os.environ.get("PFSR_COMMIT", "")


def installed(package: str) -> str | None:
    """The version of an installed package, None when it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
