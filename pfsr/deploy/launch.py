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


def launch(run_config: Mapping[str, Value], num_nodes: int) -> Path:
    """Runs the app on a simulated federation.

    Args:
        run_config: The complete run config, with absolute paths and ``run.directory``.
        num_nodes: Number of simulated nodes.

    Returns:
        The run's directory.

    Raises:
        LaunchError: When the run could not be started, or when Flower does not call it completed.
    """
    start_time = time.time()
    with (
        tempfile.TemporaryDirectory(prefix="pfsr-") as flower_home,
        superlink(Path(flower_home)) as link,
    ):
        config_path = Path(flower_home) / "run-config.toml"
        config_lines = (f"{key} = {toml_value(value)}\n" for key, value in run_config.items())
        config_path.write_text("".join(config_lines), "utf-8")
        _flwr_run(link, app_directory(Path(flower_home)), config_path, num_nodes)
        _check_completed(link)
    return _run_directory(run_config, start_time)


@contextlib.contextmanager
def superlink(flower_home: Path) -> Iterator[Link]:
    """A SuperLink for simulations, stopped at the end together with its descendants."""
    port, flower_environment = free_port(), environment(flower_home)
    log_path = flower_home / "superlink.log"
    address = f"127.0.0.1:{port}"
    (flower_home / "config.toml").write_text(
        f'[superlink.{CONNECTION}]\naddress = "{address}"\ninsecure = true\n', "utf-8"
    )
    command = [tool("flower-superlink"), "--insecure", "--simulation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log_path.open("wb") as log_file:
        process = subprocess.Popen(
            command,
            stdout=log_file,
            stderr=log_file,
            env=flower_environment,
            start_new_session=True,
        )
    link = Link(process, address, flower_environment, log_path)
    try:
        _wait_until_healthy(link)
        yield link
    finally:
        stop(process)


def _flwr_run(link: Link, app_path: Path, config_path: Path, num_nodes: int) -> None:
    federation_config = f"num-supernodes={num_nodes} client-resources-num-cpus=1"
    command = [tool("flwr"), "run", str(app_path), CONNECTION, "--stream"]
    command += ["--federation-config", federation_config, "--run-config", str(config_path)]
    exit_code = subprocess.run(command, env=link.environment, check=False).returncode
    if exit_code != 0:
        raise LaunchError(f"flwr run ended with code {exit_code}.{_tail(link)}")


def _check_completed(link: Link) -> None:
    """Asks for the status, since ``flwr run --stream`` exits with 0 whatever became of the run."""
    command = [tool("flwr"), "list", CONNECTION, "--format", "json"]
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        list_result = subprocess.run(
            command, env=link.environment, capture_output=True, text=True, check=False
        )
        status = run_status(list_result.stdout)
        if status.startswith("finished") or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if status != "finished:completed":
        raise LaunchError(f"the run ended as {status!r}.{_tail(link)}")


def run_status(json_text: str) -> str:
    """The status of the only run in the output of ``flwr list --format json``."""
    try:
        runs = json.loads(json_text)["runs"]
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


def _run_directory(run_config: Mapping[str, Value], start_time: float) -> Path:
    runs_directory = Path(str(run_config["run.directory"]))
    if run_config.get("run.resume"):
        return runs_directory / str(run_config["run.resume"])
    new_summaries = [
        summary_path
        for summary_path in runs_directory.glob("*/summary.json")
        if summary_path.stat().st_mtime >= start_time - 1
    ]
    if not new_summaries:
        raise LaunchError(f"the run completed, but {runs_directory} has no new summary.json")
    return max(new_summaries, key=lambda summary_path: summary_path.stat().st_mtime).parent


def _tail(link: Link) -> str:
    log_lines = link.log.read_text("utf-8", "replace").splitlines()[-25:]
    return "".join(f"\n  superlink: {line}" for line in log_lines)
