"""A whole run without Flower: the plain loop with evaluation after each round, and its files.

The run directory is that of a federated run, so the same report reads it. Bytes are those that one
node a client would send: float32 values of the shared names, headers not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import Federation
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.data.describe import describe
from pfsr_core.federated.aggregation import merge_sums
from pfsr_core.federated.algorithm import FULL, Broadcast, ServerState, Sums
from pfsr_core.federated.evaluation import ClientModels, shows_full, split_means
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import RoundReport, finetune_clients, run
from pfsr_core.files import append_line, write_json
from pfsr_core.params import Params, shapes_of, size_of
from pfsr_core.runs.environment import environment
from pfsr_core.runs.files import SELECTED_BY, SELECTORS, best_line, write_clients
from pfsr_core.runs.item_map import typical_item_maps, write_item_maps
from pfsr_core.runs.results import (
    Evaluations,
    Row,
    baseline_rows,
    client_rows,
    coverage,
    evaluate_personal,
    evaluate_trained_on,
    federated_row,
)
from pfsr_core.settings.fields import Value

Tell = Callable[[str], None]
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Experiment:
    """One algorithm over one federation."""

    settings: Settings
    federation: Federation
    assembly: Assembly

    @property
    def name(self) -> str:
        return self.settings.algorithm.name

    def evaluate(self, shared: Params, states: Mapping[str, Params]) -> Evaluations:
        return evaluate_personal(self._models(shared, states), self.federation)

    def _models(self, shared: Params, states: Mapping[str, Params]) -> ClientModels:
        return ClientModels(self.assembly, self.settings.model.max_length, shared, states)

    def views_at_the_end(
        self,
        broadcast: Broadcast,
        states: Mapping[str, Params],
        finetuned: Mapping[str, float] | None,
    ) -> dict[str, Mapping[str, float]]:
        """Means of FULL, which are those of the ``finetuned`` states where there are such."""
        if not shows_full(self.assembly.algorithm, self.settings.run.evaluate_clients):
            return {}
        if finetuned is None:
            models = self._models(broadcast.params, states)
            finetuned = split_means(evaluate_trained_on(models, broadcast, self.federation))
        return {FULL: finetuned}


@dataclass(frozen=True)
class Outcome:
    """What one algorithm ended with: its summary row, the rows of its clients, and its models."""

    row: Row
    clients: list[Row]
    experiment: Experiment
    shared: Params
    states: Mapping[str, Params]


def simulate(settings: Settings, federation: Federation, directory: Path, tell: Tell) -> None:
    """The algorithm of ``settings``, those of ``run.compare``, the baselines; all files.

    Raises SettingsError and DataError before anything is written.
    """
    started = time.perf_counter()
    names = algorithm_names(settings)
    first = _experiment(settings, names[0], federation)
    directory.mkdir(parents=True)
    _write_facts(settings, federation, directory)
    baselines, clients = baseline_rows(federation) if settings.run.baselines else ([], [])
    if baselines:
        best = {row["method"]: row["best"] for row in baselines}
        write_json(directory / "baselines.json", best)
    methods = []
    for name in names:
        experiment = first if name == names[0] else _experiment(settings, name, federation)
        outcome = train_and_evaluate(experiment, tell, directory / "metrics.jsonl")
        methods.append(outcome.row)
        clients += outcome.clients
        if experiment is first:
            _write_item_maps(outcome, directory)
    write_clients(directory / "clients.csv", clients)
    summary = {
        "run": directory.name,
        "split": federation.split.digest,
        "protocol": federation.split.protocol,
        "users": len(federation.split.users),
        "clients": len(federation.clients),
        "coverage": coverage(federation),
        "seconds": time.perf_counter() - started,
        "methods": [*methods, *baselines],
    }
    write_json(directory / "summary.json", summary)


def _experiment(settings: Settings, name: str, federation: Federation) -> Experiment:
    chosen = replace(settings, algorithm=replace(settings.algorithm, name=name))
    return Experiment(chosen, federation, assemble(chosen, federation.catalogue))


def train_and_evaluate(experiment: Experiment, tell: Tell, metrics: Path | None = None) -> Outcome:
    """One algorithm, evaluated after each round, which is told and added to ``metrics``."""
    settings, federation = experiment.settings, experiment.federation
    assembly = experiment.assembly
    selected_by = SELECTORS[settings.run.selected_by]
    served: list[ServerState] = []
    lines: list[Row] = []
    started = last = time.perf_counter()

    def on_round(report: RoundReport) -> None:
        nonlocal last
        figures = {}
        if _to_evaluate(settings, report.server.round):
            figures = split_means(experiment.evaluate(report.server.params, report.states))
        now = time.perf_counter()
        lines.append({**_round_line(experiment, report), "seconds": now - last, **figures})
        last = now
        if best_line(lines, selected_by) is lines[-1]:
            served[:] = [report.server]
        if metrics is not None:
            append_line(metrics, lines[-1])
        tell(progress(lines[-1], settings.federation.rounds))

    server, states = run(
        assembly.algorithm,
        federation.clients,
        rounds=settings.federation.rounds,
        seed=settings.run.seed,
        participation=settings.federation.participation,
        on_round=on_round,
    )
    if settings.run.may_serve_best and assembly.algorithm.states_fit_any_round:
        server = served[0]
    outcomes: dict[str, Sums] = {}
    if settings.algorithm.finetune:
        states = finetune_clients(
            assembly.algorithm, server.broadcast(), states, federation.clients
        )
        outcomes = {name: assembly.algorithm.outcome(state) for name, state in states.items()}
    found = experiment.evaluate(server.params, states)
    finetuned = split_means(found) if settings.algorithm.finetune else None
    seconds = time.perf_counter() - started
    views = experiment.views_at_the_end(server.broadcast(), states, finetuned)
    row = federated_row(experiment.name, lines, finetuned, views, seconds, selected_by)
    row |= {"served_round": server.round, "outcome": merge_sums(outcomes.values())}
    rows = client_rows(experiment.name, federation, found, outcomes)
    return Outcome(row, rows, experiment, server.params, states)


def progress(line: Row, rounds: int) -> str:
    """One line for a person who waits."""
    parts = [f"{line['algorithm']}  round {line['round']}/{rounds}  loss {line['train-loss']:.3f}"]
    if SELECTED_BY in line:
        parts.append(f"valid HR@10 {line['valid/excluded/hr@10']:.4f}")
        parts.append(f"NDCG@10 {line[SELECTED_BY]:.4f}")
    return "  ".join([*parts, f"{line['seconds']:.1f} s"])


def _to_evaluate(settings: Settings, round_: int) -> bool:
    """Every ``run.evaluate-every`` rounds, and after the last one."""
    return round_ % settings.run.evaluate_every == 0 or round_ == settings.federation.rounds


def _write_facts(settings: Settings, federation: Federation, directory: Path) -> None:
    write_json(directory / "config.json", flat_settings(settings))
    write_json(directory / "environment.json", environment())
    facts = describe(federation.interactions, federation.split)
    write_json(directory / "data.json", {**facts, "coverage": coverage(federation)})


def _write_item_maps(outcome: Outcome, directory: Path) -> None:
    experiment = outcome.experiment
    clients = experiment.federation.clients
    views = typical_item_maps(experiment.assembly, outcome.shared, outcome.states, clients)
    if views:
        write_item_maps(directory, views)


def _round_line(experiment: Experiment, report: RoundReport) -> Row:
    sums, asked = report.reply.metrics, len(report.asked)
    clients = sums.get("clients", 0.0)
    kept = {k.removeprefix("kept/"): v for k, v in sums.items() if k.startswith("kept/")}
    reply = experiment.assembly.algorithm.reply_shapes
    return {
        "round": report.server.round,
        "algorithm": experiment.name,
        "train-loss": sums["train-loss"] / max(1.0, sums["train-targets"]),
        "asked": asked,
        "answered": asked,
        "dropped": [],
        "bytes-down": BYTES_PER_VALUE * asked * size_of(shapes_of(report.server.params)),
        "bytes-up": BYTES_PER_VALUE * asked * size_of(reply),
        "kept": {name: share / clients for name, share in kept.items() if clients},
    }


VECTORS = "model.item-vectors"


ONE_CLIENT: Mapping[str, Value] = {
    "federation.partition": "group",
    "federation.clients": 1,
    "federation.sizes": "",
    "federation.participation": 1.0,
    "model.items": "shared",
    "algorithm.name": "fed-avg",
    "algorithm.server-optimizer": "average",
    "algorithm.server-learning-rate": 1.0,
    "algorithm.server-momentum": 0.9,
    "algorithm.server-decay": 1.0,
    "algorithm.server-epsilon": 1e-3,
    "algorithm.finetune": False,
    "run.compare": "",
}
"""What makes a recipe central; nothing overrides it."""


ALL_DATA: Mapping[str, Value] = {
    "model.item-start": "common",
    "model.item-std": 0.02,
    "model.dropout": 0.3,
    "train.optimizer": "adam",
    "train.learning-rate": 0.002,
    "train.item-learning-rate": 0.002,
    "train.batch-size": 64,
}
"""What suits one table learnt from all data, in place of the small steps for many private ones."""


def central_values(
    recipe: Mapping[str, Value], overrides: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """Flat settings of the recipe trained centrally; ``overrides`` win over :data:`ALL_DATA`.

    Vectors of the recipe's items are left out where the loss has no use for them.
    """
    chosen = {**recipe, **ALL_DATA, **(overrides or {}), **ONE_CLIENT}
    if not chosen.get("train.semantic-share") and VECTORS not in (overrides or {}):
        chosen.pop(VECTORS, None)
    return chosen
