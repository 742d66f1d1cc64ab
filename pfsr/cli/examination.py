"""Checks of the installation: each finding names what is missing and how to install it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from pathlib import Path

from pfsr.deploy.findings import Finding
from pfsr_core.data.download import cache_directory
from pfsr_core.runs.environment import installed

NEEDED_PACKAGES = (
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
OLDEST_PYTHON = (3, 11)
FLOWER_RANGE = ((1, 39), (1, 40))  # the half-open range that the project pins
FLOWER_FIX = 'pip install "flwr>=1.39,<1.40"'
CACHED_FILES = {"ml-100k": ("ml-100k.inter", "u.data"), "ml-1m": ("ratings.dat",)}


def examine() -> list[Finding]:
    """All findings; nothing is changed, nothing is downloaded."""
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _python,
        _packages,
        _flower,
        _accelerator,
        lambda: [_cache(name, file_names) for name, file_names in CACHED_FILES.items()],
        _disk,
    )
    return [finding for check in checks for finding in check()]


def _python() -> list[Finding]:
    found = platform.python_version()
    if sys.version_info >= OLDEST_PYTHON:
        return [Finding("ok", "python", found)]
    return [Finding("missing", "python", found, "use Python 3.11 or newer")]


def _packages() -> list[Finding]:
    findings = []
    for package_name in NEEDED_PACKAGES:
        package_version = installed(package_name)
        if package_version:
            findings.append(Finding("ok", package_name, package_version))
        else:
            findings.append(
                Finding("missing", package_name, "not installed", f"pip install {package_name}")
            )
    return findings


def _flower() -> list[Finding]:
    flower_version, ray_version = installed("flwr"), installed("ray")
    ray_finding = Finding("ok", "ray", ray_version or "")
    if ray_version is None:
        fix = 'pip install "flwr[simulation]>=1.39,<1.40", for flwr run with simulated nodes'
        ray_finding = Finding("note", "ray", "not installed", fix)
    return [flower_finding(flower_version), ray_finding]


def flower_finding(flower_version: str | None) -> Finding:
    """Whether a version of Flower, None without one, is in the range that the project pins."""
    if flower_version is None:
        return Finding("missing", "flwr", "not installed", FLOWER_FIX)
    version_parts = flower_version.split(".")[:2]
    is_numeric = all(part.isdecimal() for part in version_parts)
    if is_numeric and FLOWER_RANGE[0] <= tuple(map(int, version_parts)) < FLOWER_RANGE[1]:
        return Finding("ok", "flwr", flower_version)
    return Finding("missing", "flwr", f"{flower_version}, needed >=1.39,<1.40", FLOWER_FIX)


def _accelerator() -> list[Finding]:
    return [_kernels(), _cuda(), _mamba()]


def _kernels() -> Finding:
    kernels_version = installed("pfsr-kernels")
    if not kernels_version:
        fix = "make setup, or pip install ./kernels, where a C++ compiler is"
        return Finding("note", "pfsr-kernels", "not installed; plain PyTorch is used, slower", fix)
    try:
        from pfsr_core.models.ops.kernel_calls import compiled, lanes
    except ImportError:
        return Finding("note", "pfsr-kernels", f"{kernels_version}, unknown without torch")
    if compiled() is None:
        fix = "pip install --force-reinstall ./kernels, and look whether PFSR_KERNELS=never is set"
        return Finding(
            "note", "pfsr-kernels", f"{kernels_version}, not used; plain PyTorch is, slower", fix
        )
    return Finding("ok", "pfsr-kernels", f"{kernels_version}, vectors of {lanes()} numbers")


def _cuda() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("note", "CUDA", "unknown without torch")
    if torch.cuda.is_available():
        return Finding("ok", "CUDA", f"{torch.version.cuda}, {torch.cuda.get_device_name(0)}")
    return Finding("note", "CUDA", "no GPU; everything runs on the processor")


def _mamba() -> Finding:
    mamba_version = installed("mamba-ssm")
    if mamba_version:
        return Finding("ok", "mamba-ssm", mamba_version)
    fix = 'pip install "pfsr[cuda]", on Linux with an NVIDIA GPU'
    return Finding("note", "mamba-ssm", "not installed; the scan in PyTorch is used", fix)


def _cache(dataset_name: str, file_names: tuple[str, ...]) -> Finding:
    cache_folder = cache_directory() / dataset_name
    cached_file = next(filter(Path.is_file, (cache_folder / name for name in file_names)), None)
    subject = f"data {dataset_name}"
    if cached_file:
        return Finding("ok", subject, str(cached_file))
    return Finding("note", subject, "not fetched yet", f"pfsr data fetch {dataset_name}")


def _disk() -> list[Finding]:
    import shutil

    free_gigabytes = shutil.disk_usage(Path.cwd()).free / 1e9
    if free_gigabytes >= 1.0:
        return [Finding("ok", "disk", f"{free_gigabytes:.0f} GB free here")]
    return [Finding("missing", "disk", f"{free_gigabytes:.2f} GB free here", "free at least 1 GB")]
