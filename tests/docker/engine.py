"""What there is here to lint, resolve, build and run containers with, and why not.

The environment may say: PFSR_TEST_IMAGE (an image that is built already), PFSR_TEST_BUILD_ARGS
(further words of ``docker build``: a base image, secrets, a network), DOCKER_HOST.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docker"
COMPOSE_FILES = ("compose.yml", "compose.tls.yml", "compose.node.yml")
IMAGE = "pfsr-test:latest"
HARDENED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def call(
    *command: str, seconds: float = 120, **options: object
) -> subprocess.CompletedProcess[str]:
    """The command with its output, as text; its exit code is for the caller to judge."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, capture_output=True, text=True, check=False, timeout=seconds, **options
    )


def must(*command: str, seconds: float = 120, **options: object) -> str:
    """The output of a command that has to succeed."""
    done = call(*command, seconds=seconds, **options)
    assert done.returncode == 0, (
        f"{shlex.join(command)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done.stdout


def tool(name: str) -> str:
    """The path of a command, of this Python environment or the system; skips without it."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here: pip install '.[dev]'")
    return found


@functools.cache
def compose_command() -> tuple[str, ...]:
    """Docker's compose, as a plugin or on its own; skips without one."""
    if shutil.which("docker") and call("docker", "compose", "version").returncode == 0:
        return ("docker", "compose")
    return (tool("docker-compose"),)


def compose(file: str, *words: str, seconds: float = 600, **options: object) -> str:
    """``docker compose -f docker/FILE WORDS``, which has to succeed."""
    return must(*compose_command(), "-f", str(FOLDER / file), *words, seconds=seconds, **options)


def environment(**variables: str) -> Mapping[str, str]:
    """This process's environment without what configures the compose files, and ``variables``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PFSR_")}
    return {**kept, **variables}


def need_engine() -> None:
    """Skips unless a container engine answers."""
    if shutil.which("docker") is None:
        pytest.skip("no docker command here")
    done = call("docker", "version", "--format", "{{.Server.Version}}")
    if done.returncode != 0:
        pytest.skip(f"no container engine answers: {done.stderr.strip().splitlines()[-1]}")


@functools.cache
def image() -> str:
    """The image under test: $PFSR_TEST_IMAGE, or built now. Skips without engine or base image."""
    need_engine()
    given = os.environ.get("PFSR_TEST_IMAGE", "")
    if given:
        must("docker", "image", "inspect", given)
        return given
    words = shlex.split(os.environ.get("PFSR_TEST_BUILD_ARGS", ""))
    command = ["docker", "build", "-f", str(FOLDER / "Dockerfile"), "-t", IMAGE, *words, str(ROOT)]
    done = call(*command, seconds=1800, env={**os.environ, "DOCKER_BUILDKIT": "1"})
    if "buildx component is missing" in done.stderr:
        pytest.skip("this docker command cannot use BuildKit: install its buildx plugin")
    if "failed to resolve" in done.stderr or "failed to do request" in done.stderr:
        pytest.skip("the base image cannot be had here; PFSR_TEST_BUILD_ARGS may name another")
    assert done.returncode == 0, done.stderr[-4000:]
    return IMAGE


def in_container(*command: str, options: tuple[str, ...] = HARDENED) -> str:
    """Output of ``command`` in a container of its own: no network, nothing of the host."""
    return must("docker", "run", "--rm", "--init", "--network=none", *options, image(), *command)
