"""What this program runs on: versions and machine, for the record beside every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("pfsr", "flwr", "torch", "numpy", "pandas", "ray", "safetensors")


def environment() -> dict[str, Any]:
    """Python, platform, processors, and the versions of the packages that results depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: installed(name) or "" for name in PACKAGES},
    }


def installed(package: str) -> str | None:
    """The version of an installed package, None when it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
