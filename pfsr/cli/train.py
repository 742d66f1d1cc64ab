"""The training commands: settings from recipe and overrides, then a run, then its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import clients_text, final_table, methods_text
from pfsr_core.runs.files import CENTRAL, Json, Method, RunError, method_of, new_directories
from pfsr_core.runs.local import Experiment, central_values, simulate, train_and_evaluate
from pfsr_core.runs.local_evaluation import evaluate_baselines
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.recipes import load_recipe, with_overrides

Tell = Callable[[str], None]


def read_settings(recipe: Path | None, overrides: Sequence[str]) -> Settings:
    """The recipe, or the defaults, with the overrides on top. Raises SettingsError."""
    flat = load_recipe(recipe) if recipe else {}
    return parse_settings(with_overrides(flat, overrides))


def simulate_run(
    recipe: Path | None, overrides: Sequence[str], out: Path | None, tell: Tell
) -> None:
    """A run in one process. Raises RunError when ``out`` is there already."""
    settings = read_settings(recipe, overrides)
    _refuse_continuing(settings)
    names = algorithm_names(settings)
    directory = out or next(path for path in new_directories(settings.run) if not path.exists())
    if directory.exists():
        raise RunError(f"{directory} exists already. Fix: name a new directory with --out.")
    federation = load_federation(settings)
    tell(f"run {directory.name}: {' '.join(names)}; {_who(federation)}; files in {directory}")
    try:
        simulate(settings, federation, directory, tell)
    except KeyboardInterrupt:
        tell(f"stopped; what is there: pfsr report {directory}")
        raise
    tell(final_table(directory))
    tell(f"report: {write_report(directory)}")


def _refuse_continuing(settings: Settings) -> None:
    """Raises SettingsError for a run that would begin anew where it was told to continue."""
    for key in ("resume", "warm_start"):
        value = getattr(settings.run, key)
        if value:
            raise SettingsError(
                f"run.{key.replace('_', '-')} = {value!r}, but a run in one process keeps nothing "
                f"to continue from. Fix: leave it out, or run through Flower "
                f"(python -m pfsr.cli.run)."
            )


def central(
    recipe: Path | None,
    overrides: Sequence[str],
    seed: int | None,
    rounds: int | None,
    tell: Tell,
) -> None:
    """The encoder of the settings, trained on all data in one place, and the baselines so."""
    settings = central_settings(recipe, overrides, seed, rounds)
    _refuse_continuing(settings)
    federation = load_federation(settings)
    tell(f"central training of {settings.model.encoder}: {_who(federation)}")
    experiment = Experiment(
        settings, federation, assemble(settings, federation.catalogue), label=CENTRAL
    )
    outcome = train_and_evaluate(experiment, tell)
    rows = [method_of(outcome.entry)]
    if settings.run.baselines:
        rows += [method_of(entry) for entry in evaluate_baselines(federation)[0]]
    tell(methods_text("all data in one place", rows))


def central_settings(
    recipe: Path | None,
    overrides: Sequence[str],
    seed: int | None = None,
    rounds: int | None = None,
) -> Settings:
    """The recipe with one client, a shared item table and steps that suit it."""
    flat = load_recipe(recipe) if recipe else {}
    given = {"run.seed": seed, "federation.rounds": rounds}
    own = {key: value for key, value in given.items() if value is not None}
    return parse_settings(central_values(flat, {**with_overrides({}, overrides), **own}))


def baselines(recipe: Path | None, overrides: Sequence[str], by_client: bool, tell: Tell) -> None:
    """Every baseline on each client alone, and on all data together.

    With ``by_client`` it is told for each client, with its own counts and with those of all.
    """
    settings = read_settings(recipe, overrides)
    federation = load_federation(settings)
    if by_client:
        tell(_who(federation))
        tell(clients_text("counts of each client alone", evaluate_baselines(federation)[1]))
        tell(clients_text("counts of all clients", evaluate_baselines(federation, pooled=True)[1]))
        return
    together = load_federation(central_settings(recipe, overrides))
    tell(_who(federation))
    rows = [
        *_named("each client alone", evaluate_baselines(federation)[0]),
        *_named("all data", evaluate_baselines(together)[0]),
    ]
    tell(methods_text("baselines without training", rows))


def _named(where: str, rows: Sequence[Json]) -> list[Method]:
    return [replace(method_of(row), version=where, kind="") for row in rows]


def _who(federation: FederatedDataset) -> str:
    users, items = len(federation.split.users), len(federation.split.item_ids)
    return f"{users} users in {len(federation.clients)} clients, {items} items"
