"""``pfsr run --local``, ``pfsr central`` and ``pfsr baselines``: everything in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import Federation, load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.reports.page import final_table, write_report
from pfsr_core.reports.tables import clients_text, methods_text
from pfsr_core.runs.files import Method, RunError, method_of, new_directories
from pfsr_core.runs.local import Experiment, central_values, simulate, train_and_evaluate
from pfsr_core.runs.results import Row, baseline_rows
from pfsr_core.settings.fields import SettingsError, Value

Log = Callable[[str], None]
Flat = Mapping[str, Value]
CENTRAL = "central"  # the name in tables of averaging over a single client


def run_local(flat: Flat, out: Path | None, log: Log) -> None:
    """Trains in this process, without Flower; writes the files of a run and its page.

    Args:
        flat: Dotted keys of the settings.
        out: The run's directory, which must not exist; None for a new one where runs are kept.
        log: Takes the lines for the person who waits.

    Raises:
        RunError: When ``out`` is there already.
        SettingsError: For settings that do not fit.
    """
    settings = parse_settings(flat)
    _refuse_continuing(settings)
    names = algorithm_names(settings)
    directory = out or next(path for path in new_directories(settings.run) if not path.exists())
    if directory.exists():
        raise RunError(f"{directory} exists already. Fix: name a new directory with --out.")
    federation = load_federation(settings)
    log(f"run {directory.name}: {' '.join(names)}; {_size_text(federation)}; files in {directory}")
    try:
        simulate(settings, federation, directory, log)
    except KeyboardInterrupt:
        log(f"stopped; what is there: pfsr report {directory}")
        raise
    log(final_table(directory))
    log(f"report: {write_report(directory)}")


def _refuse_continuing(settings: Settings) -> None:
    """Raises SettingsError for a run that would start anew although told to continue."""
    for name in ("resume", "warm_start"):
        value = getattr(settings.run, name)
        if value:
            raise SettingsError(
                f"run.{name.replace('_', '-')} = {value!r}, but a run in one process keeps nothing "
                f"to continue from. Fix: leave it out, or run through Flower (pfsr run, without "
                f"--local)."
            )


def train_centrally(flat: Flat, log: Log) -> None:
    """Trains on all data in one place; ``flat`` as from :func:`central_settings`' arguments."""
    settings = parse_settings(flat)
    _refuse_continuing(settings)
    federation = load_federation(settings)
    log(f"central training of {settings.model.encoder}: {_size_text(federation)}")
    experiment = Experiment(settings, federation, assemble(settings, federation.catalogue))
    outcome = train_and_evaluate(
        experiment, lambda line: log(line.replace(experiment.name, CENTRAL, 1))
    )
    rows = [method_of({**outcome.row, "method": CENTRAL, "bytes_down": 0, "bytes_up": 0})]
    if settings.run.baselines:
        rows += [method_of(entry) for entry in baseline_rows(federation)[0]]
    log(methods_text("all data in one place", rows))


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
        log(_size_text(federation))
        log(clients_text("counts of each client alone", baseline_rows(federation)[1]))
        log(clients_text("counts of all clients", baseline_rows(federation, pooled=True)[1]))
        return
    together = load_federation(parse_settings(central_flat(recipe, overrides)))
    log(_size_text(federation))
    rows = [
        *_with_version("each client alone", baseline_rows(federation)[0]),
        *_with_version("all data", baseline_rows(together)[0]),
    ]
    log(methods_text("baselines without training", rows))


def _with_version(version: str, rows: Sequence[Row]) -> list[Method]:
    return [replace(method_of(row), version=version, kind="") for row in rows]


def _size_text(federation: Federation) -> str:
    users, items = len(federation.split.users), len(federation.split.item_ids)
    return f"{users} users in {len(federation.clients)} clients, {items} items"
