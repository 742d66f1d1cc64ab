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

Log = Callable[[str], None]
Flat = Mapping[str, Value]


def run_local(flat: Flat, out: Path | None, log: Log) -> None:
    """Trains in this process, without Flower; writes the files of a run, its model and its page.

    Args:
        flat: Dotted keys of the settings.
        out: The run's directory, which must not exist; None for a new one where runs are kept.
        log: Takes the lines for the person who waits.

    Raises:
        RunError: When ``out`` is there already.
        SettingsError: For settings that do not fit.
    """
    settings = parse_settings(flat)
    refuse_continuing(settings)
    names = algorithm_names(settings)
    directory = _new_directory(settings.run, out)
    federation = load_federation(settings)
    log(f"run {directory.name}: {' '.join(names)}; {size_text(federation)}; files in {directory}")
    _simulate(settings, federation, directory, log)


def train_centrally(flat: Flat, out: Path | None, log: Log) -> None:
    """Trains on all data in one place; writes the files of a run, its model and its page.

    Args:
        flat: Dotted keys from :func:`central_flat`.
        out: As for :func:`run_local`.
        log: Takes the lines for the person who waits.
    """
    settings = parse_settings(flat)
    refuse_continuing(settings)
    run = replace(settings.run, name=f"{settings.run.name}-{CENTRAL}")
    directory = _new_directory(run, out)
    federation = load_federation(settings)
    log(
        f"central training of {settings.model.encoder}: {size_text(federation)}; files in "
        f"{directory}"
    )
    _simulate(settings, federation, directory, log, CENTRAL)


def _new_directory(run: RunSettings, out: Path | None) -> Path:
    directory = out or next(path for path in new_directories(run) if not path.exists())
    if directory.exists():
        raise RunError(f"{directory} exists already. Fix: name a new directory with --out.")
    return directory


def _simulate(
    settings: Settings, federation: FederatedDataset, directory: Path, log: Log, label: str = ""
) -> None:
    try:
        simulate(settings, federation, directory, log, label)
    except KeyboardInterrupt:
        log(f"stopped; what is there: pfsr report {directory}")
        raise
    log(final_table(directory))
    log(f"report: {write_report(directory)}\nmodel: pfsr recommend --model {directory} --user ID")


def central_flat(
    recipe: Flat, overrides: Flat, seed: int | None = None, rounds: int | None = None
) -> dict[str, Value]:
    """The recipe with one client, a shared item table and learning rates that suit it.

    Args:
        recipe: Dotted keys of a recipe.
        overrides: Settings that a person gave; they win over what suits central training.
        seed: In place of ``run.seed``.
        rounds: In place of ``federation.rounds``; a round is a pass over the data.
    """
    given = {"run.seed": seed, "federation.rounds": rounds}
    chosen = {key: value for key, value in given.items() if value is not None}
    return central_values(recipe, {**overrides, **chosen})


def compare_baselines(recipe: Flat, overrides: Flat, by_client: bool, log: Log) -> None:
    """Logs the figures of every baseline, fitted on each client alone and on all data.

    Args:
        recipe: Dotted keys of a recipe.
        overrides: Settings on top.
        by_client: One row a client, fitted on its own data and on that of all clients.
        log: Takes the tables.
    """
    federation = load_federation(parse_settings({**recipe, **overrides}))
    if by_client:
        log(size_text(federation))
        log(clients_text("counts of each client alone", evaluate_baselines(federation)[1]))
        log(clients_text("counts of all clients", evaluate_baselines(federation, pooled=True)[1]))
        return
    together = load_federation(parse_settings(central_flat(recipe, overrides)))
    log(size_text(federation))
    rows = [
        *_with_version("each client alone", evaluate_baselines(federation)[0]),
        *_with_version("all data", evaluate_baselines(together)[0]),
    ]
    log(methods_text("baselines without training", rows))


def _with_version(version: str, rows: Sequence[Json]) -> list[Method]:
    return [replace(method_of(row), version=version, kind="") for row in rows]
