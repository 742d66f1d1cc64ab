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
        "packages": {package_name: installed(package_name) or "" for package_name in PACKAGES},
        "commit": commit(),
    }


def commit() -> str:
    """The commit of this source tree; $PFSR_COMMIT where it is no checkout, else ""."""
    git_command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        git_result = subprocess.run(
            git_command, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        git_result = None
    commit_hash = git_result.stdout.strip() if git_result and git_result.returncode == 0 else ""
    return commit_hash or os.environ.get("PFSR_COMMIT", "")


def installed(package_name: str) -> str | None:
    """The version of an installed package, None when it is not there."""
    try:
        return version(package_name)
    except PackageNotFoundError:
        return None
