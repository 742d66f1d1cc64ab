"""The distribution of the compiled kernel: what it builds, and what happens without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
BACKEND = KERNELS / "build_backend"
COMPILER = os.environ.get("CXX") or "c++"

needs_compiler = pytest.mark.skipif(
    shutil.which(COMPILER.split()[0]) is None, reason=f"there is no compiler {COMPILER}"
)


def build(hook: str, directory: Path, **environment: str) -> Path:
    """What a build front end does: call one hook in a process of its own."""
    code = f"import wheel_of_library as b; print(b.{hook}({str(directory)!r}))"
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(BACKEND), **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return directory / made.stdout.split()[-1]


def install(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(KERNELS / "install.py")],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )


@needs_compiler
@pytest.mark.slow
class TestWheel:
    def test_holds_the_library_and_needs_no_python_version(self, tmp_path: Path) -> None:
        wheel = build("build_wheel", tmp_path, CXXFLAGS="-O0")
        assert "-py3-none-" in wheel.name
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            archive.extractall(tmp_path)
        assert {"pfsr_kernels/__init__.py", "pfsr_kernels/libpfsr_kernels.so"} <= set(names)
        code = "import pfsr_kernels; print(pfsr_kernels.library().pfsr_lanes())"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        loaded = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        assert int(loaded.stdout) in (4, 8, 16)

    def test_pip_accepts_the_record(self, tmp_path: Path) -> None:
        wheel = build("build_wheel", tmp_path, CXXFLAGS="-O0")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--target", str(tmp_path / "site"), str(wheel)], check=True)
        assert (tmp_path / "site" / "pfsr_kernels" / "libpfsr_kernels.so").is_file()


def test_source_distribution_is_complete_and_has_nothing_built(tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sources = {str(path.relative_to(KERNELS)) for path in (KERNELS / "src").iterdir()}
    assert sources | {"pyproject.toml", "PKG-INFO", "pfsr_kernels/__init__.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


class TestInstall:
    def test_without_a_compiler_it_says_so_and_goes_on(self) -> None:
        done = install(CXX="no-such-compiler")
        assert done.returncode == 0
        assert done.stdout == (
            "pfsr-kernels is not installed: there is no compiler no-such-compiler (set CXX to"
            " one). Plain PyTorch is used, with the same results.\n"
        )

    def test_a_compiler_that_fails_is_no_failure_either(self) -> None:
        done = install(CXX="false")
        assert done.returncode == 0
        assert done.stdout.startswith("pfsr-kernels is not installed: false did not build it")
        assert done.stdout.count("\n") == 1
