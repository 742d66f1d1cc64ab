"""``python -m pfsr.cli.run``: one simulated run from start to end, and nothing left behind.

Starts a SuperLink of its own on a free loopback port, with a Flower home of its own, runs the app
in it with ``flwr run``, asks what became of the run (``flwr run`` itself ends well either way),
and stops every process it started, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfsr.deploy.flower_commands import DeploymentError, free_port, tool
from pfsr.deploy.processes import APP, STOP_SECONDS, environment, stop
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.settings.recipes import load_recipe, toml_value, with_overrides

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only for a run that Flower calls completed; 2 for settings that do not fit."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        directory = launch(
            resolve(options.recipe, options.run_config, options.resume), options.nodes
        )
    except SettingsError as error:
        return _fail(str(error), 2)
    except (LaunchError, DeploymentError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("stopped; continue with --resume and the run's name", 130)
    _draw_items(directory)
    sys.stdout.write(f"run directory: {directory}\nreport: {directory / 'report.html'}\n")
    return 0


def launch(config: Mapping[str, Value], nodes: int) -> Path:
    """Runs what :func:`resolve` made and returns the run's directory. Raises LaunchError."""
    began = time.time()
    with tempfile.TemporaryDirectory(prefix="pfsr-") as home, superlink(Path(home)) as link:
        path = Path(home) / "run-config.toml"
        path.write_text("".join(f"{k} = {toml_value(v)}\n" for k, v in config.items()), "utf-8")
        _flwr_run(link, path, nodes)
        _check_completed(link)
    return _directory(config, began)


def resolve(recipe: Path | None, overrides: Sequence[str], resume: str = "") -> dict[str, Value]:
    """The run config: a recipe with overrides, checked, with absolute paths.

    ``resume`` names a run to continue: its own settings are the recipe then. Raises SettingsError.
    """
    flat = with_overrides(load_recipe(recipe) if recipe else {}, overrides)
    if resume:
        flat = {**_settings_of(_root(flat) / resume), **flat, "run.resume": resume}
    settings = parse_settings(flat)
    _check(settings)
    config = {**flat, "run.directory": str(_root(flat))}
    # The app runs in another directory than the one that paths are written from.
    data, vectors = (
        Path(given).expanduser() for given in (settings.data.path, settings.model.item_vectors)
    )
    if settings.data.path and data.exists():
        config["data.path"] = str(data.absolute())
    if vectors.suffix and vectors.is_file():
        config["model.item-vectors"] = str(vectors.absolute())
    return config


def _check(settings: Settings) -> None:
    """What the apps would refuse only after a minute of starting, and with a traceback."""
    data = settings.data
    if data.source == "file" and not Path(data.path).expanduser().is_file():
        raise SettingsError(f"data.path = {data.path!r}: no such file. Fix: give the data's path.")
    # Only here: these load torch, which starting needs for nothing else.
    from pfsr_core.assembly.compatibility import algorithm_names
    from pfsr_core.runs.files import new_directories

    algorithm_names(settings)
    next(new_directories(settings.run))


def _draw_items(directory: Path) -> None:
    """The simulated nodes kept their states on this machine, so the report may show their items."""
    # Only here: these load torch, which a launch needs for nothing else.
    from pfsr_core.reports.node_item_map import add_item_map
    from pfsr_core.runs.item_map import ItemMapError
    from pfsr_core.serving.node_store import default_state_directory
    from pfsr_core.serving.served_model import RecommendationError
    from pfsr_core.serving.sqlite_file import NodeStoreError

    try:
        add_item_map(directory, default_state_directory())
    except (ItemMapError, NodeStoreError, RecommendationError) as error:
        sys.stderr.write(f"no picture of the items in the report: {error}\n")


def _root(flat: Mapping[str, Value]) -> Path:
    """Where runs are written."""
    home = os.environ.get("PFSR_HOME")
    given = str(flat.get("run.directory", ""))
    return Path(given or (Path(home) / "runs" if home else "runs")).expanduser().absolute()


def _settings_of(directory: Path) -> dict[str, Value]:
    try:
        found: dict[str, Value] = json.loads((directory / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{directory} is no run that can be continued ({error}). Fix: give the name of a "
            f"directory there, and --run-config run.directory=... if it lies elsewhere."
        ) from None
    return found


@contextlib.contextmanager
def superlink(home: Path) -> Iterator[Link]:
    """A SuperLink for simulations; at the end it and all its descendants are gone."""
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


def _flwr_run(link: Link, config: Path, nodes: int) -> None:
    federation = f"num-supernodes={nodes} client-resources-num-cpus=1"
    command = [tool("flwr"), "run", str(APP), CONNECTION, "--stream"]
    command += ["--federation-config", federation, "--run-config", str(config)]
    code = subprocess.run(command, env=link.environment, check=False).returncode
    if code != 0:
        raise LaunchError(f"flwr run ended with code {code}.{_tail(link)}")


def _check_completed(link: Link) -> None:
    """``flwr run --stream`` ends with code 0 whatever became of the run: ask."""
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
    """The status of the only run in the answer of ``flwr list --format json``."""
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


def _directory(config: Mapping[str, Value], began: float) -> Path:
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


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def _fail(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


def _count(text: str) -> int:
    """A whole number from 1. Raises argparse's error."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pfsr.cli.run", description=__doc__)
    parser.add_argument("--recipe", type=Path, help="TOML file, e.g. recipes/pfsr.toml")
    parser.add_argument("--resume", default="", metavar="RUN", help="continue this run")
    parser.add_argument("--nodes", type=_count, default=2, help="simulated nodes (default 2)")
    parser.add_argument(
        "--run-config", nargs="*", default=[], metavar="KEY=VALUE", help="settings on top"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
