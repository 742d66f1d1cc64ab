"""``pfsr run``: a recipe through Flower, or in one process with ``--local``."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfsr.cli.errors import core_errors, plain_errors
from pfsr.cli.options import OutputDirectory, RecipeWords, flat_settings

if TYPE_CHECKING:
    from pfsr_core.assembly.settings import Settings
    from pfsr_core.settings.fields import Value

DEFAULT_NODES = 2


@plain_errors(core_errors)
def run(
    settings: RecipeWords = None,
    *,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", "-n", help=f"Simulated nodes. Default: {DEFAULT_NODES}.", min=1),
    ] = None,
    resume: Annotated[
        str, typer.Option("--resume", metavar="ID", help="Continue this run, e.g. after Ctrl-C.")
    ] = "",
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Flower.")
    ] = False,
    out: OutputDirectory = None,
) -> None:
    """Train a recipe: on simulated nodes through Flower, or with --local in this process.

    Both write the same files and end with the same tensors.

    RECIPE is the name of a recipe, such as pfsr, or the path of a TOML file. Default: the defaults
    of all settings, which are those of pfsr. KEY=VALUE replaces one setting.

    The exit status is 0 for a completed run, 1 for a run that failed, 2 for invalid settings.

    Examples: `pfsr run pfsr`, `pfsr run smoke --local`, `pfsr run pfsr federation.rounds=5
    --nodes 4`
    """
    if local:
        if nodes is not None or resume:
            raise typer.BadParameter(
                "--nodes and --resume are for runs through Flower, not --local"
            )
        from pfsr.cli.train import run_local

        run_local(flat_settings(settings), out, typer.echo)
        return
    if out is not None:
        raise typer.BadParameter("--out is for --local; through Flower write run.directory=PATH")
    _run_through_flower(run_config(flat_settings(settings), resume), nodes or DEFAULT_NODES)


def _run_through_flower(flower_config: Mapping[str, Value], nodes: int) -> None:
    # Only here: these take a second to import.
    from pfsr.deploy.flower_commands import DeploymentError
    from pfsr.deploy.launch import LaunchError, launch

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        run_directory = launch(flower_config, nodes)
    except (LaunchError, DeploymentError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("stopped; continue with --resume and the run's name", err=True)
        raise typer.Exit(130) from None
    _add_item_map(run_directory)
    typer.echo(f"run directory: {run_directory}\nreport: {run_directory / 'report.html'}")


def run_config(setting_values: Mapping[str, Value], resumed_run: str = "") -> dict[str, Value]:
    """The run config of a run through Flower, checked, with absolute paths.

    Args:
        setting_values: Dotted keys of the recipe and the settings on top.
        resumed_run: Name of a run to continue; its own settings are the recipe then.

    Raises:
        SettingsError: For settings that the apps would refuse, and for a run that is not there.
    """
    from pfsr_core.assembly.settings import parse_settings
    from pfsr_core.settings.sections import RunSettings, runs_directory

    given_directory = str(setting_values.get("run.directory") or "")
    runs_root = runs_directory(RunSettings(directory=given_directory)).absolute()
    if resumed_run:
        setting_values = {
            **_settings_of_run(runs_root / resumed_run),
            **setting_values,
            "run.resume": resumed_run,
        }
    settings = parse_settings(setting_values)
    _check(settings)
    flower_config = {**setting_values, "run.directory": str(runs_root)}
    # The app runs in another directory than the one that paths are written from.
    data_path = Path(settings.data.path).expanduser()
    vectors_path = Path(settings.model.item_vectors).expanduser()
    if settings.data.path and data_path.exists():
        flower_config["data.path"] = str(data_path.absolute())
    if vectors_path.suffix and vectors_path.is_file():
        flower_config["model.item-vectors"] = str(vectors_path.absolute())
    return flower_config


def _check(settings: Settings) -> None:
    """Raises SettingsError for what the apps would refuse only later and with a traceback."""
    from pfsr_core.assembly.compatibility import algorithm_names
    from pfsr_core.runs.files import new_directories
    from pfsr_core.settings.fields import SettingsError

    data_settings = settings.data
    if data_settings.source == "file" and not Path(data_settings.path).expanduser().is_file():
        raise SettingsError(
            f"data.path = {data_settings.path!r}: no such file. Fix: give the data's path."
        )
    algorithm_names(settings)
    next(new_directories(settings.run))


def _add_item_map(run_directory: Path) -> None:
    """Draws the item map into the report: simulated nodes keep their states on this machine."""
    from pfsr_core.reports.node_item_map import add_item_map
    from pfsr_core.runs.item_map import ItemMapError
    from pfsr_core.serving.node_store import default_state_directory
    from pfsr_core.serving.served_model import RecommendationError
    from pfsr_core.serving.sqlite_file import NodeStoreError

    try:
        add_item_map(run_directory, default_state_directory())
    except (ItemMapError, NodeStoreError, RecommendationError) as error:
        typer.echo(f"no item map in the report: {error}", err=True)


def _settings_of_run(run_directory: Path) -> dict[str, Value]:
    from pfsr_core.settings.fields import SettingsError

    try:
        saved_settings: dict[str, Value] = json.loads(
            (run_directory / "config.json").read_text("utf-8")
        )
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{run_directory} is no run that can be continued ({error}). Fix: give the name of a "
            f"directory there, and run.directory=... if it lies elsewhere."
        ) from None
    return saved_settings


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
