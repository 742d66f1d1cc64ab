"""A build backend (PEP 517) without dependencies: the package and its library in a wheel.

The wheel's tag is py3-none-<platform>: the library knows neither Python's nor torch's interface.
"""

from __future__ import annotations

import base64
import hashlib
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

from compile_library import compile_library

ROOT = Path(__file__).parents[1]
PACKAGE = "pfsr_kernels"
SOURCE_PARTS = ("pyproject.toml", "README.md", "build_backend", "src", PACKAGE)


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,  # noqa: ARG001  a hook's arguments
    metadata_directory: str | None = None,  # noqa: ARG001
) -> str:
    project = _project()
    tag = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
    stem = f"{PACKAGE}-{project['version']}"
    files = {f"{PACKAGE}/__init__.py": (ROOT / PACKAGE / "__init__.py").read_bytes()}
    with tempfile.TemporaryDirectory() as work:
        library = Path(work, f"lib{PACKAGE}.so")
        compile_library(library, Path(work))
        files[f"{PACKAGE}/{library.name}"] = library.read_bytes()
    files[f"{stem}.dist-info/METADATA"] = _metadata(project)
    files[f"{stem}.dist-info/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: pfsr\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    )
    name = f"{stem}-{tag}.whl"
    _write_wheel(Path(wheel_directory, name), files, f"{stem}.dist-info/RECORD")
    return name


def build_sdist(
    sdist_directory: str,
    config_settings: dict[str, Any] | None = None,  # noqa: ARG001
) -> str:
    stem = f"{PACKAGE}-{_project()['version']}"
    with tarfile.open(Path(sdist_directory, f"{stem}.tar.gz"), "w:gz") as archive:
        for part in SOURCE_PARTS:
            archive.add(ROOT / part, f"{stem}/{part}", filter=_source_only)
        with tempfile.NamedTemporaryFile() as metadata:
            metadata.write(_metadata(_project()))
            metadata.flush()
            archive.add(metadata.name, f"{stem}/PKG-INFO")
    return f"{stem}.tar.gz"


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def _metadata(project: dict[str, Any]) -> bytes:
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {project['name']}",
        f"Version: {project['version']}",
        f"Summary: {project['description']}",
        f"License-Expression: {project['license']}",
        f"Requires-Python: {project['requires-python']}",
    ]
    return ("\n".join(lines) + "\n").encode()


def _write_wheel(path: Path, files: dict[str, bytes], record: str) -> None:
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            lines.append(f"{name},sha256={digest.decode()},{len(content)}")
            archive.writestr(name, content)
        archive.writestr(record, "\n".join([*lines, f"{record},,"]) + "\n")


def _source_only(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name or entry.name.endswith(".so") else entry
