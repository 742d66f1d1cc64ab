"""One simulated run through Flower from start to end, and nothing left behind.

Starts a SuperLink of its own on a free loopback port, with a Flower home of its own, runs the app
in it with ``flwr run``, asks for the run's status (``flwr run`` exits with 0 either way), and stops
every process that it started, also after Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pfsr.deploy.app_directory import app_directory
from pfsr.deploy.flower_commands import free_port, tool
from pfsr.deploy.processes import STOP_SECONDS, environment, stop
from pfsr_core.settings.fields import Value
from pfsr_core.settings.recipes import toml_value

CONNECTION = "pfsr-launch"
START_SECONDS = 120.0


class LaunchError(RuntimeError):
    """A run that could not be started or did not complete."""


@dataclass(frozen=True)
class Link:
    """A running SuperLink and what the command line needs to reach it."""

    process: subprocess.Popen[bytes]
    address: str
    environment: Mapping[str, str]
    log: Path


def launch(config: Mapping[str, Value], nodes: int) -> Path:
    """Runs the app on a simulated federation.

    Args:
        config: The complete run config, with absolute paths and ``run.directory``.
        nodes: Number of simulated nodes.

    Returns:
        The run's directory.

    Raises:
        LaunchError: When the run could not be started, or when Flower does not call it completed.
    """
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="pfsr-") as home, superlink(Path(home)) as link:
        path = Path(home) / "run-config.toml"
        path.write_text("".join(f"{k} = {toml_value(v)}\n" for k, v in config.items()), "utf-8")
        _flwr_run(link, app_directory(Path(home)), path, nodes)
        _check_completed(link)
    return _run_directory(config, began)


@contextlib.contextmanager
def superlink(home: Path) -> Iterator[Link]:
    """A SuperLink for simulations, stopped at the end together with its descendants."""
    port, variables, log = free_port(), environment(home), home / "superlink.log"
    address = f"127.0.0.1:{port}"
    (home / "config.toml").write_text(
        f'[superlink.{CONNECTION}]\naddress = "{address}"\ninsecure = true\n', "utf-8"
    )
    command = [tool("flower-superlink"), "--insecure", "--simulation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=variables, start_new_session=True
        )
    link = Link(process, address, variables, log)
    try:
        _wait_until_healthy(link)
        yield link
    finally:
        stop(process)


def _flwr_run(link: Link, app: Path, config: Path, nodes: int) -> None:
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1"
    command = [tool("flwr"), "run", str(app), CONNECTION, "--stream"]
    command += ["--federation-config", federation, "--run-config", str(config)]
    code = subprocess.run(command, env=link.environment, check=False).returncode
    if code != 0:
        raise LaunchError(f"flwr run ended with code {code}.{_tail(link)}")


def _check_completed(link: Link) -> None:
    """Asks for the status, since ``flwr run --stream`` exits with 0 whatever became of the run."""
    command = [tool("flwr"), "list", CONNECTION, "--format", "json"]
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        done = subprocess.run(
            command, env=link.environment, capture_output=True, text=True, check=False
        )
        status = run_status(done.stdout)
        if status.startswith("finished") or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if status != "finished:completed":
        raise LaunchError(f"the run ended as {status!r}.{_tail(link)}")


def run_status(text: str) -> str:
    """The status of the only run in the output of ``flwr list --format json``."""
    try:
        runs = json.loads(text)["runs"]
        return str(runs[0]["status"])
    except (ValueError, KeyError, IndexError, TypeError):
        return "unknown"


def _wait_until_healthy(link: Link) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if link.process.poll() is not None:
            raise LaunchError(f"the SuperLink ended at once.{_tail(link)}")
        try:
            with urllib.request.urlopen(f"http://{link.address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise LaunchError(f"the SuperLink was not ready after {START_SECONDS:g} s.{_tail(link)}")


def _run_directory(config: Mapping[str, Value], began: float) -> Path:
    root = Path(str(config["run.directory"]))
    if config.get("run.resume"):
        return root / str(config["run.resume"])
    written = [path for path in root.glob("*/summary.json") if path.stat().st_mtime >= began - 1]
    if not written:
        raise LaunchError(f"the run completed, but {root} has no new summary.json")
    return max(written, key=lambda path: path.stat().st_mtime).parent


def _tail(link: Link) -> str:
    lines = link.log.read_text("utf-8", "replace").splitlines()[-25:]
    return "".join(f"\n  superlink: {line}" for line in lines)
