"""``pfsr run --local``, ``pfsr central`` and ``pfsr baselines``: everything in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pfsr.fitting import refuse_continuing, size_text
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import clients_text, final_table, methods_text
from pfsr_core.runs.files import CENTRAL, Json, Method, RunError, method_of, new_directories
from pfsr_core.runs.local import central_values, simulate
from pfsr_core.runs.local_evaluation import evaluate_baselines
from pfsr_core.settings.fields import Value
from pfsr_core.settings.sections import RunSettings

LogLine = Callable[[str], None]
FlatSettings = Mapping[str, Value]


def run_local(setting_values: FlatSettings, out_directory: Path | None, log_line: LogLine) -> None:
    """Trains in this process, without Flower; writes the files of a run, its model and its page.

    Args:
        setting_values: Dotted keys of the settings.
        out_directory: The run's directory, which must not exist; None for a new one where runs
            are kept.
        log_line: Prints a line of progress.

    Raises:
        RunError: When ``out_directory`` is there already.
        SettingsError: For settings that do not fit.
    """
    settings = parse_settings(setting_values)
    refuse_continuing(settings)
    method_names = algorithm_names(settings)
    run_directory = _new_directory(settings.run, out_directory)
    federated_data = load_federation(settings)
    log_line(
        f"run {run_directory.name}: {' '.join(method_names)}; {size_text(federated_data)}; "
        f"files in {run_directory}"
    )
    _simulate(settings, federated_data, run_directory, log_line)


def train_centrally(
    setting_values: FlatSettings, out_directory: Path | None, log_line: LogLine
) -> None:
    """Trains on all data in one place; writes the files of a run, its model and its page.

    Args:
        setting_values: Dotted keys from :func:`central_flat`.
        out_directory: As for :func:`run_local`.
        log_line: Prints a line of progress.
    """
    settings = parse_settings(setting_values)
    refuse_continuing(settings)
    run_settings = replace(settings.run, name=f"{settings.run.name}-{CENTRAL}")
    run_directory = _new_directory(run_settings, out_directory)
    federated_data = load_federation(settings)
    log_line(
        f"central training of {settings.model.encoder}: {size_text(federated_data)}; files in "
        f"{run_directory}"
    )
    _simulate(settings, federated_data, run_directory, log_line, CENTRAL)


def _new_directory(run_settings: RunSettings, out_directory: Path | None) -> Path:
    run_directory = out_directory or next(
        new_path for new_path in new_directories(run_settings) if not new_path.exists()
    )
    if run_directory.exists():
        raise RunError(f"{run_directory} exists already. Fix: name a new directory with --out.")
    return run_directory


def _simulate(
    settings: Settings,
    federated_data: FederatedDataset,
    run_directory: Path,
    log_line: LogLine,
    method_label: str = "",
) -> None:
    try:
        simulate(settings, federated_data, run_directory, log_line, method_label)
    except KeyboardInterrupt:
        log_line(f"stopped; what is there: pfsr report {run_directory}")
        raise
    log_line(final_table(run_directory))
    log_line(f"report: {write_report(run_directory)}")
    log_line(f"model: pfsr recommend --model {run_directory} --user ID")


def central_flat(
    recipe_values: FlatSettings,
    overrides: FlatSettings,
    seed: int | None = None,
    rounds: int | None = None,
) -> dict[str, Value]:
    """The recipe with one client, a shared item table and learning rates that suit it.

    Args:
        recipe_values: Dotted keys of a recipe.
        overrides: Settings of the command line; they replace what suits central training.
        seed: In place of ``run.seed``.
        rounds: In place of ``federation.rounds``; a round is a pass over the data.
    """
    given_values = {"run.seed": seed, "federation.rounds": rounds}
    replaced_values = {key: value for key, value in given_values.items() if value is not None}
    return central_values(recipe_values, {**overrides, **replaced_values})


def compare_baselines(
    recipe_values: FlatSettings, overrides: FlatSettings, by_client: bool, log_line: LogLine
) -> None:
    """Logs the figures of every baseline, fitted on each client alone and on all data.

    Args:
        recipe_values: Dotted keys of a recipe.
        overrides: Settings on top.
        by_client: One row per client, fitted on its own data and on that of all clients.
        log_line: Prints a table.
    """
    federated_data = load_federation(parse_settings({**recipe_values, **overrides}))
    if by_client:
        log_line(size_text(federated_data))
        log_line(clients_text("counts of each client alone", evaluate_baselines(federated_data)[1]))
        pooled_rows = evaluate_baselines(federated_data, pooled=True)[1]
        log_line(clients_text("counts of all clients", pooled_rows))
        return
    pooled_data = load_federation(parse_settings(central_flat(recipe_values, overrides)))
    log_line(size_text(federated_data))
    baseline_rows = [
        *_with_version("each client alone", evaluate_baselines(federated_data)[0]),
        *_with_version("all data", evaluate_baselines(pooled_data)[0]),
    ]
    log_line(methods_text("baselines without training", baseline_rows))


def _with_version(version: str, result_rows: Sequence[Json]) -> list[Method]:
    return [replace(method_of(result_row), version=version, kind="") for result_row in result_rows]
