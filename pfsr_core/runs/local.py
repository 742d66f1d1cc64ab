"""A run without a network: the plain loop with evaluation after each round, and its files.

The run directory is that of a Flower run, so the same report reads it, and holds the trained model
besides (:mod:`pfsr_core.runs.model_files`). Bytes are those that one node a client would exchange:
float32 values of the shared parameters, headers not counted.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import Federation
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.data.describe import describe
from pfsr_core.evaluation.metrics.registry import FILTERED, headline_metrics
from pfsr_core.federated.aggregation import merge_sums
from pfsr_core.federated.algorithm import FULL, Broadcast, ServerState, Sums
from pfsr_core.federated.evaluation import ClientModels, shows_full, split_means
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import RoundReport, finetune_clients, run, state_of
from pfsr_core.files import append_line, write_json
from pfsr_core.params import Params, shapes_of, size_of
from pfsr_core.runs.environment import environment
from pfsr_core.runs.files import CENTRAL, SELECTORS, best_line
from pfsr_core.runs.item_map import typical_item_maps, write_item_maps
from pfsr_core.runs.local_evaluation import (
    Evaluations,
    client_result_rows,
    coverage,
    evaluate_baselines,
    evaluate_personal,
    evaluate_trained_on,
)
from pfsr_core.runs.model_files import MODEL_DIRECTORY, save_model
from pfsr_core.runs.results import (
    Cost,
    Figures,
    Identity,
    Json,
    Participation,
    Traffic,
    method_entry,
    metrics_of,
    round_line,
    run_summary,
    with_metrics,
    write_clients,
)
from pfsr_core.serving.prepare import served_client, served_model
from pfsr_core.serving.served_model import Served
from pfsr_core.settings.fields import Value

Log = Callable[[str], None]
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Experiment:
    """One algorithm over one federation.

    Attributes:
        settings: Settings that name the algorithm.
        federation: The clients.
        assembly: The assembled model.
        label: What the algorithm is called in the results, "" for its own name. With CENTRAL
            nothing is exchanged.
    """

    settings: Settings
    federation: Federation
    assembly: Assembly
    label: str = ""

    @property
    def name(self) -> str:
        """The algorithm's name in the results."""
        return self.label or self.settings.algorithm.name

    def evaluate(self, shared: Params, states: Mapping[str, Params]) -> Evaluations:
        """Validation and test of every client with its model."""
        return evaluate_personal(self._models(shared, states), self.federation)

    def _models(self, shared: Params, states: Mapping[str, Params]) -> ClientModels:
        return ClientModels(self.assembly, self.settings.model.max_length, shared, states)

    def final_variants(
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
    """What one algorithm ended with.

    Attributes:
        entry: Its entry in the summary.
        rows: The rows of its clients in clients.csv.
        experiment: What was run.
        server: The server's last state; its shared parameters are served.
        states: The clients' private states by name.
    """

    entry: Json
    rows: list[Json]
    experiment: Experiment
    server: ServerState
    states: Mapping[str, Params]

    def served_model(self, run_name: str) -> Served:
        """The trained model of all clients, ready to recommend with or to be saved."""
        experiment = self.experiment
        served = served_model(
            experiment.assembly,
            self.server.params,
            experiment.settings,
            experiment.federation,
            run=run_name,
            round_=self.server.round,
        )
        algorithm = experiment.assembly.algorithm
        clients = {
            data.client: served_client(
                experiment.assembly, data, state_of(algorithm, self.states, data)
            )
            for data in experiment.federation.clients
        }
        return replace(served, clients=clients)


def simulate(
    settings: Settings, federation: Federation, directory: Path, log: Log, label: str = ""
) -> None:
    """Runs the algorithm of ``settings``, those of ``run.compare`` and the baselines.

    Writes all files of the run, and the trained model of the first algorithm.

    Args:
        settings: Of the run.
        federation: The clients.
        directory: The new directory of the run.
        log: Takes a line a round.
        label: What the first algorithm is called, see :class:`Experiment`.

    Raises:
        SettingsError: Settings that do not fit each other, before anything is written.
        DataError: Item vectors are missing, before anything is written.
    """
    started = time.perf_counter()
    names = algorithm_names(settings)
    first = replace(_experiment(settings, names[0], federation), label=label)
    directory.mkdir(parents=True)
    _write_facts(settings, federation, directory)
    baselines, rows = evaluate_baselines(federation) if settings.run.baselines else ([], [])
    if baselines:
        best = {entry["method"]: entry["best"] for entry in baselines}
        write_json(directory / "baselines.json", best)
    entries = []
    for name in names:
        experiment = first if name == names[0] else _experiment(settings, name, federation)
        outcome = train_and_evaluate(experiment, log, directory / "metrics.jsonl")
        entries.append(outcome.entry)
        rows += outcome.rows
        if experiment is first:
            _write_item_maps(outcome, directory)
            save_model(directory / MODEL_DIRECTORY, outcome.served_model(directory.name))
    write_clients(directory / "clients.csv", rows)
    split = federation.split
    summary = run_summary(
        Identity(
            run=directory.name,
            split=split.digest,
            protocol=split.protocol,
            users=len(split.users),
            clients=len(federation.clients),
        ),
        coverage=coverage(federation),
        seconds=time.perf_counter() - started,
        methods=[*entries, *baselines],
    )
    write_json(directory / "summary.json", summary)


def _experiment(settings: Settings, name: str, federation: Federation) -> Experiment:
    chosen = replace(settings, algorithm=replace(settings.algorithm, name=name))
    return Experiment(chosen, federation, assemble(chosen, federation.catalogue))


def train_and_evaluate(experiment: Experiment, log: Log, metrics: Path | None = None) -> Outcome:
    """Trains one algorithm and evaluates it after each round.

    Args:
        experiment: What to run.
        log: Takes a line a round.
        metrics: The file that each round's line is added to.
    """
    settings, federation = experiment.settings, experiment.federation
    assembly = experiment.assembly
    selected_by = SELECTORS[settings.run.selected_by]
    served: list[ServerState] = []
    lines: list[Json] = []
    started = last = time.perf_counter()

    def on_round(report: RoundReport) -> None:
        nonlocal last
        figures = {}
        if _to_evaluate(settings, report.server.round):
            figures = split_means(experiment.evaluate(report.server.params, report.states))
        now = time.perf_counter()
        lines.append(with_metrics(_round_line(experiment, report, now - last), figures))
        last = now
        if best_line(lines, selected_by) is lines[-1]:
            served[:] = [report.server]
        if metrics is not None:
            append_line(metrics, lines[-1])
        log(progress_line(lines[-1], settings.federation.rounds))

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
    evaluations = experiment.evaluate(server.params, states)
    finetuned = split_means(evaluations) if settings.algorithm.finetune else None
    seconds = time.perf_counter() - started
    best = best_line(lines, selected_by) or lines[-1]
    entry = method_entry(
        experiment.name,
        Figures(
            best={"round": best["round"], "metrics": metrics_of(best)},
            last=metrics_of(lines[-1]),
            finetuned=finetuned,
            variants=experiment.final_variants(server.broadcast(), states, finetuned),
        ),
        rounds=len(lines),
        served_round=server.round,
        outcome=merge_sums(outcomes.values()),
        traffic=Traffic(
            sum(line["bytes-down"] for line in lines), sum(line["bytes-up"] for line in lines)
        ),
        seconds=seconds,
    )
    rows = client_result_rows(experiment.name, federation, evaluations, outcomes)
    return Outcome(entry, rows, experiment, server, states)


def progress_line(line: Mapping[str, Any], rounds: int) -> str:
    """A round's line as a person reads it while waiting."""
    parts = [f"{line['algorithm']}  round {line['round']}/{rounds}"]
    if line["train-loss"] is not None:
        parts.append(f"loss {line['train-loss']:.3f}")
    figures = [
        f"{metric.title} {line[key]:.4f}"
        for metric in headline_metrics()
        if (key := f"valid/{FILTERED}/{metric.name}") in line
    ]
    if figures:
        parts.append(f"valid {figures[0]}")
    return "  ".join([*parts, *figures[1:], f"{line['seconds']:.1f} s"])


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
    maps = typical_item_maps(experiment.assembly, outcome.server.params, outcome.states, clients)
    if maps:
        write_item_maps(directory, maps)


def _round_line(experiment: Experiment, report: RoundReport, seconds: float) -> Json:
    asked = len(report.asked)
    exchanged = 0 if experiment.label == CENTRAL else BYTES_PER_VALUE * asked
    return round_line(
        experiment.name,
        report.server.round,
        report.reply,
        participation=Participation(asked, asked),
        traffic=Traffic(
            down=exchanged * size_of(shapes_of(report.server.params)),
            up=exchanged * size_of(experiment.assembly.algorithm.reply_shapes),
        ),
        cost=Cost(seconds, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    )


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
