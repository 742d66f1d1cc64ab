"""Is everything here that a run needs? Each finding names what is missing and how to get it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

from pfsr.deploy.findings import Finding
from pfsr_core.data.download import cache_directory
from pfsr_core.runs.environment import installed

NEEDED = (
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "scipy",
    "safetensors",
    "typer",
    "rich",
    "matplotlib",
    "cryptography",
    "grpcio",
)
PYTHON = (3, 11)
FLOWER = ((1, 39), (1, 40))  # the half-open range that the project pins
FLOWER_FIX = 'pip install "flwr>=1.39,<1.40"'
CACHED = {"ml-100k": ("ml-100k.inter", "u.data"), "ml-1m": ("ratings.dat",)}


def examine() -> list[Finding]:
    """All findings; nothing is changed, nothing is downloaded."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _packages,
        _flower,
        _accelerator,
        _data,
        _disk,
    )
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    found = platform.python_version()
    if sys.version_info >= PYTHON:
        return [Finding("ok", "python", found)]
    return [Finding("missing", "python", found, "use Python 3.11 or newer")]


def _packages() -> list[Finding]:
    findings = []
    for name in NEEDED:
        found = installed(name)
        if found:
            findings.append(Finding("ok", name, found))
        else:
            findings.append(Finding("missing", name, "not installed", f"pip install {name}"))
    return findings


def _flower() -> list[Finding]:
    found, simulation = installed("flwr"), installed("ray")
    engine = Finding("ok", "ray", simulation or "")
    if simulation is None:
        fix = 'pip install "flwr[simulation]>=1.39,<1.40", for flwr run with simulated nodes'
        engine = Finding("note", "ray", "not installed", fix)
    return [flower_finding(found), engine]


def flower_finding(found: str | None) -> Finding:
    """Whether the Flower version ``found`` is one that the project was made for."""
    if found is None:
        return Finding("missing", "flwr", "not installed", FLOWER_FIX)
    parts = found.split(".")[:2]
    if all(part.isdecimal() for part in parts) and FLOWER[0] <= tuple(map(int, parts)) < FLOWER[1]:
        return Finding("ok", "flwr", found)
    return Finding("missing", "flwr", f"{found}, needed >=1.39,<1.40", FLOWER_FIX)


def _accelerator() -> list[Finding]:
    return [_kernels(), _cuda(), _mamba()]


def _kernels() -> Finding:
    found = installed("pfsr-kernels")
    if not found:
        fix = "make setup, or pip install ./kernels, where a C++ compiler is"
        return Finding("note", "pfsr-kernels", "not installed; plain PyTorch is used, slower", fix)
    try:
        from pfsr_core.models.ops.kernel_calls import compiled, lanes
    except ImportError:
        return Finding("note", "pfsr-kernels", f"{found}, unknown without torch")
    if compiled() is None:
        fix = "pip install --force-reinstall ./kernels, and look whether PFSR_KERNELS=never is set"
        return Finding("note", "pfsr-kernels", f"{found}, not used; plain PyTorch is, slower", fix)
    return Finding("ok", "pfsr-kernels", f"{found}, vectors of {lanes()} numbers")


def _cuda() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("note", "CUDA", "unknown without torch")
    if torch.cuda.is_available():
        return Finding("ok", "CUDA", f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}")
    return Finding("note", "CUDA", "no GPU; everything runs on the processor")


def _mamba() -> Finding:
    found = installed("mamba-ssm")
    if found:
        return Finding("ok", "mamba-ssm", found)
    fix = 'pip install "pfsr[cuda]", on Linux with an NVIDIA GPU'
    return Finding("note", "mamba-ssm", "not installed; the scan in PyTorch is used", fix)


def _data() -> list[Finding]:
    return [_cache(name, files) for name, files in CACHED.items()]


def _cache(name: str, files: tuple[str, ...]) -> Finding:
    folder = cache_directory() / name
    found = next((folder / file for file in files if (folder / file).is_file()), None)
    if found:
        return Finding("ok", f"data {name}", str(found))
    return Finding("note", f"data {name}", "not fetched yet", f"pfsr data fetch {name}")


def _disk() -> list[Finding]:
    import shutil

    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free >= 1.0:
        return [Finding("ok", "disk", f"{free:.0f} GB free here")]
    return [Finding("missing", "disk", f"{free:.2f} GB free here", "free at least 1 GB")]
