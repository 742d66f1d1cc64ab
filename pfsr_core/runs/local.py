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
from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.assembly.settings import DECLARATIONS, Settings, flat_settings, with_algorithm
from pfsr_core.data.describe import describe
from pfsr_core.federated.aggregation import merge_sums
from pfsr_core.federated.algorithm import FULL, Broadcast, ServerState, Sums
from pfsr_core.federated.evaluation import ClientModels, shows_full, split_means
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import RoundReport, finetune_clients, run, state_of
from pfsr_core.files import append_line, write_json
from pfsr_core.params import Params, shapes_of, size_of
from pfsr_core.runs.environment import environment
from pfsr_core.runs.files import CENTRAL, SELECTORS, Json, best_line
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
    Participation,
    Traffic,
    method_entry,
    metrics_of,
    progress_texts,
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
    federation: FederatedDataset
    assembly: Assembly
    label: str = ""

    @property
    def name(self) -> str:
        """The algorithm's name in the results."""
        return self.label or self.settings.algorithm.name

    def evaluate(self, shared_params: Params, client_states: Mapping[str, Params]) -> Evaluations:
        """Validation and test of every client with its model."""
        return evaluate_personal(self._models(shared_params, client_states), self.federation)

    def _models(self, shared_params: Params, client_states: Mapping[str, Params]) -> ClientModels:
        return ClientModels(
            self.assembly, self.settings.model.max_length, shared_params, client_states
        )

    def final_variants(
        self,
        broadcast: Broadcast,
        client_states: Mapping[str, Params],
        finetuned_means: Mapping[str, float] | None,
    ) -> dict[str, Mapping[str, float]]:
        """Means of the variant FULL; those of the finetuned states where these are given."""
        if not shows_full(self.assembly.algorithm, self.settings.run.evaluate_clients):
            return {}
        if finetuned_means is None:
            client_models = self._models(broadcast.params, client_states)
            finetuned_means = split_means(
                evaluate_trained_on(client_models, broadcast, self.federation)
            )
        return {FULL: finetuned_means}


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
        served_value = served_model(
            experiment.assembly,
            self.server.params,
            experiment.settings,
            experiment.federation,
            run_name=run_name,
            round_=self.server.round,
        )
        algorithm = experiment.assembly.algorithm
        served_clients = {
            client_data.client: served_client(
                experiment.assembly, client_data, state_of(algorithm, self.states, client_data)
            )
            for client_data in experiment.federation.clients
        }
        return replace(served_value, clients=served_clients)


def simulate(
    settings: Settings, federation: FederatedDataset, run_directory: Path, log: Log, label: str = ""
) -> None:
    """Runs the algorithm of ``settings``, those of ``run.compare`` and the baselines.

    Writes all files of the run, and the trained model of the first algorithm.

    Args:
        settings: Of the run.
        federation: The clients.
        run_directory: The new directory of the run.
        log: Takes one line per round.
        label: What the first algorithm is called, see :class:`Experiment`.

    Raises:
        SettingsError: Settings that do not fit each other, before anything is written.
        DataError: Item vectors are missing, before anything is written.
    """
    started_at = time.perf_counter()
    method_names = algorithm_names(settings)
    main_experiment = replace(_experiment(settings, method_names[0], federation), label=label)
    run_directory.mkdir(parents=True)
    _write_facts(settings, federation, run_directory)
    baseline_entries, client_rows = (
        evaluate_baselines(federation) if settings.run.baselines else ([], [])
    )
    if baseline_entries:
        baseline_means = {
            summary_entry["method"]: summary_entry["best"] for summary_entry in baseline_entries
        }
        write_json(run_directory / "baselines.json", baseline_means)
    method_entries = []
    for method_name in method_names:
        experiment = (
            main_experiment
            if method_name == method_names[0]
            else _experiment(settings, method_name, federation)
        )
        outcome = train_and_evaluate(experiment, log, run_directory / "metrics.jsonl")
        method_entries.append(outcome.entry)
        client_rows += outcome.rows
        if experiment is main_experiment:
            _write_item_maps(outcome, run_directory)
            save_model(run_directory / MODEL_DIRECTORY, outcome.served_model(run_directory.name))
    write_clients(run_directory / "clients.csv", client_rows)
    split = federation.split
    summary = run_summary(
        Identity(
            run=run_directory.name,
            split=split.digest,
            protocol=split.protocol,
            users=len(split.users),
            clients=len(federation.clients),
        ),
        coverage=coverage(federation),
        seconds=time.perf_counter() - started_at,
        method_entries=[*method_entries, *baseline_entries],
    )
    write_json(run_directory / "summary.json", summary)


def _experiment(
    settings: Settings, algorithm_name: str, federation: FederatedDataset
) -> Experiment:
    algorithm_settings = with_algorithm(settings, algorithm_name)
    return Experiment(
        algorithm_settings, federation, assemble(algorithm_settings, federation.catalogue)
    )


def train_and_evaluate(
    experiment: Experiment, log: Log, metrics_file: Path | None = None
) -> Outcome:
    """Trains one algorithm and evaluates it after each round.

    Args:
        experiment: What to run.
        log: Takes one line per round.
        metrics_file: The file that each round's line is added to.
    """
    settings, federation = experiment.settings, experiment.federation
    assembly = experiment.assembly
    selected_by = SELECTORS[settings.run.selected_by]
    selected_states: list[ServerState] = []
    round_lines: list[Json] = []
    started_at = last_round_at = time.perf_counter()

    def on_round(round_report: RoundReport) -> None:
        nonlocal last_round_at
        metric_means = {}
        if _to_evaluate(settings, round_report.server.round):
            metric_means = split_means(
                experiment.evaluate(round_report.server.params, round_report.states)
            )
        evaluated_at = time.perf_counter()
        round_lines.append(
            with_metrics(
                _round_line(experiment, round_report, evaluated_at - last_round_at), metric_means
            )
        )
        last_round_at = evaluated_at
        if best_line(round_lines, selected_by) is round_lines[-1]:
            selected_states[:] = [round_report.server]
        if metrics_file is not None:
            append_line(metrics_file, round_lines[-1])
        log(progress_line(round_lines[-1], settings.federation.rounds))

    server_state, client_states = run(
        assembly.algorithm,
        federation.clients,
        rounds=settings.federation.rounds,
        seed=settings.run.seed,
        participation=settings.federation.participation,
        on_round=on_round,
    )
    if settings.run.may_serve_best and assembly.algorithm.client.states_fit_any_round:
        server_state = selected_states[0]
    client_outcomes: dict[str, Sums] = {}
    if settings.algorithm.finetune:
        client_states = finetune_clients(
            assembly.algorithm, server_state.broadcast(), client_states, federation.clients
        )
        outcome_of = assembly.algorithm.personalization.outcome
        client_outcomes = {
            client_name: outcome_of(client_state)
            for client_name, client_state in client_states.items()
        }
    client_evaluations = experiment.evaluate(server_state.params, client_states)
    finetuned_means = split_means(client_evaluations) if settings.algorithm.finetune else None
    wall_seconds = time.perf_counter() - started_at
    best_round = best_line(round_lines, selected_by) or round_lines[-1]
    summary_entry = method_entry(
        experiment.name,
        Figures(
            best={"round": best_round["round"], "metrics": metrics_of(best_round)},
            last=metrics_of(round_lines[-1]),
            finetuned=finetuned_means,
            variants=experiment.final_variants(
                server_state.broadcast(), client_states, finetuned_means
            ),
        ),
        num_rounds=len(round_lines),
        served_round=server_state.round,
        outcome=merge_sums(client_outcomes.values()),
        traffic=Traffic(
            sum(line["bytes-down"] for line in round_lines),
            sum(line["bytes-up"] for line in round_lines),
        ),
        seconds=wall_seconds,
    )
    client_rows = client_result_rows(
        experiment.name, federation, client_evaluations, client_outcomes
    )
    return Outcome(summary_entry, client_rows, experiment, server_state, client_states)


def progress_line(round_entry: Mapping[str, Any], num_rounds: int) -> str:
    """A round's line as a person reads it while waiting."""
    position_texts, metric_texts = progress_texts(round_entry, num_rounds)
    return "  ".join([*position_texts, *metric_texts, f"{round_entry['seconds']:.1f} s"])


def _to_evaluate(settings: Settings, round_: int) -> bool:
    """Every ``run.evaluate-every`` rounds, and after the last one."""
    return round_ % settings.run.evaluate_every == 0 or round_ == settings.federation.rounds


def _write_facts(settings: Settings, federation: FederatedDataset, run_directory: Path) -> None:
    write_json(run_directory / "config.json", flat_settings(settings))
    write_json(run_directory / "environment.json", environment())
    data_facts = describe(federation.interactions, federation.split)
    write_json(run_directory / "data.json", {**data_facts, "coverage": coverage(federation)})


def _write_item_maps(outcome: Outcome, run_directory: Path) -> None:
    experiment = outcome.experiment
    client_datasets = experiment.federation.clients
    item_maps = typical_item_maps(
        experiment.assembly, outcome.server.params, outcome.states, client_datasets
    )
    if item_maps:
        write_item_maps(run_directory, item_maps)


def _round_line(experiment: Experiment, round_report: RoundReport, wall_seconds: float) -> Json:
    num_asked = len(round_report.asked)
    bytes_per_value = 0 if experiment.label == CENTRAL else BYTES_PER_VALUE * num_asked
    return round_line(
        experiment.name,
        round_report.server.round,
        round_report.reply,
        participation=Participation(num_asked, num_asked),
        traffic=Traffic(
            down=bytes_per_value * size_of(shapes_of(round_report.server.params)),
            up=bytes_per_value * size_of(experiment.assembly.algorithm.client.reply_shapes),
        ),
        cost=Cost(
            wall_seconds, wall_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        ),
    )


ITEM_VECTORS_KEY = "model.item-vectors"


ONE_CLIENT: Mapping[str, Value] = {
    "federation.partition": "group",
    "federation.clients": 1,
    "federation.sizes": "",
    "federation.participation": 1.0,
    "model.items": "shared",
    "algorithm.name": "fed-avg",
    **{
        key: declared.default
        for key, declared in DECLARATIONS.items()
        if key.startswith("algorithm.server.")
    },
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
"""Settings for one table trained on all data, instead of the small steps of private tables."""


def central_values(
    recipe_values: Mapping[str, Value], overrides: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """Flat settings of the recipe trained centrally; ``overrides`` win over :data:`ALL_DATA`.

    Vectors of the recipe's items are left out where the loss has no use for them.
    """
    merged_values = {**recipe_values, **ALL_DATA, **(overrides or {}), **ONE_CLIENT}
    if not merged_values.get("train.semantic-share") and ITEM_VECTORS_KEY not in (overrides or {}):
        merged_values.pop(ITEM_VECTORS_KEY, None)
    return merged_values
