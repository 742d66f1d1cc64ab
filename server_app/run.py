"""A whole run: the nodes that take part, the rounds of each algorithm, the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.serverapp import Grid

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.settings import Settings, with_algorithm
from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.evaluation.metrics.registry import FILTERED, headline_metrics
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.params import fingerprint
from pfsr_core.reports.columns import share
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import final_table
from pfsr_core.runs.results import with_metrics
from server_app.checkpoints import Progress, load_checkpoint
from server_app.final_round import Finish, finish
from server_app.membership import gather_nodes
from server_app.roster import Roster
from server_app.run_log import RunLog, logger, open_run
from server_app.strategy import (
    PersonalizedStrategy,
    Training,
    keep_model,
    to_arrays,
    update_best,
)
from server_app.summary import ask_baselines, federated_result, write_summary


@dataclass(frozen=True)
class Run:
    """What all algorithms of a run have in common.

    Attributes:
        grid: the connection to the nodes.
        settings: those of the run.
        log: its directory.
        registration: what a node is asked when it registers.
        roster: the nodes that took part from the start.
    """

    grid: Grid
    settings: Settings
    log: RunLog
    registration: Mapping[str, Any]
    roster: Roster


def run_federation(grid: Grid, settings: Settings) -> RunLog:
    """A whole run: the algorithm of the settings, then those of ``run.compare``."""
    start_time = time.monotonic()
    compared_names = algorithm_names(settings)
    run_log = open_run(settings)
    logger.info(f"run {run_log.run_id}: {' '.join(compared_names)}; files in {run_log.directory}")
    registration_config = {"run": run_log.run_id, "warm-start": settings.run.warm_start}
    federation_settings = settings.federation
    roster = gather_nodes(
        grid,
        registration_config,
        start_timeout=federation_settings.start_timeout,
        min_nodes=federation_settings.min_nodes,
    )
    for node_id, refusal in roster.refused.items():
        logger.info(f"node {node_id} cannot take part: {refusal.reason}")
    _write_data_facts(run_log, roster)
    if settings.run.baselines:
        ask_baselines(grid, run_log, roster, settings.federation.round_timeout)
    run = Run(grid, settings, run_log, registration_config, roster)
    algorithm_results = {
        algorithm_name: train_algorithm(run, algorithm_name) for algorithm_name in compared_names
    }
    write_summary(
        run_log, roster, settings.data.protocol, algorithm_results, time.monotonic() - start_time
    )
    return run_log


def print_results(run_log: RunLog) -> None:
    """Logs the final table, and writes the report's page beside the run's files."""
    logger.info("")
    logger.info(final_table(run_log.directory))
    logger.info(f"report: {write_report(run_log.directory)}")


def train_algorithm(run: Run, algorithm_name: str) -> dict[str, Any]:
    """One algorithm from its checkpoint, or from the start, to its result."""
    checkpoint_name = f"checkpoint-{algorithm_name}"
    finished_result: dict[str, Any] | None = run.log.read(f"{checkpoint_name}/result.json")
    if finished_result is not None:
        logger.info(f"{algorithm_name}  was finished before")
        return finished_result
    algorithm_settings = with_algorithm(run.settings, algorithm_name)
    assembly = server_model(algorithm_settings, run.roster)
    training = Training(
        run.log,
        algorithm_settings,
        assembly.algorithm,
        fingerprint(assembly.shapes, algorithm_name, run.roster.split_digest),
        run.registration,
        item_ids=run.roster.members[0].item_ids,
        is_main=algorithm_name == run.settings.algorithm.name,
    )
    progress = load_checkpoint(run.log.path(checkpoint_name), training.fingerprint)
    progress = progress or Progress(training.algorithm.server.init())
    run.log.forget_rounds(algorithm_name, progress.pending["round"] if progress.pending else 0)
    strategy = PersonalizedStrategy(training, run.roster, progress)
    federation_settings = algorithm_settings.federation
    strategy.start(
        run.grid,
        to_arrays(progress.server),
        num_rounds=federation_settings.rounds,
        timeout=federation_settings.round_timeout,
    )
    final_figures = finish(run.grid, training, strategy.roster, strategy.progress)
    last_means = strategy.last_evaluation or final_figures.last
    return _write_result(run, training, strategy.progress, replace(final_figures, last=last_means))


def server_model(settings: Settings, roster: Roster) -> Assembly:
    """The server's half of the model. It knows the items only where their table is shared."""
    shared_ids = roster.members[0].item_ids
    num_items = max(member.num_items for member in roster.members)
    ids = shared_ids or tuple(map(str, range(1, num_items + 1)))
    return assemble(settings, ItemCatalogue(ids, known=bool(shared_ids)))


def _write_result(
    run: Run, training: Training, progress: Progress, final_figures: Finish
) -> dict[str, Any]:
    """Writes the last line and the models; the result that marks the algorithm as done."""
    algorithm_name = training.name
    run.log.forget_rounds(algorithm_name, progress.server.round)
    run.log.add_round(with_metrics(progress.pending or {}, final_figures.last))
    best_round = update_best(training, run.roster, progress, final_figures.last).best
    if best_round != progress.best:
        keep_model(training, "best", progress.server)
    keep_model(training, "last", progress.server)
    progress = replace(progress, best=best_round)
    summary_entry = federated_result(
        algorithm_name, progress, final_figures, serves_best=training.serves_best
    )
    algorithm_result = {"entry": summary_entry, "rows": list(final_figures.clients)}
    run.log.write(f"checkpoint-{algorithm_name}/result.json", algorithm_result)
    for outcome_name, client_count in final_figures.outcome.items():
        logger.info(
            f"{algorithm_name}  {outcome_name}: {client_count:g} of {len(run.roster.clients)} "
            f"clients"
        )
    test_metrics = final_figures.finetuned or final_figures.last
    stage_text = "as finetuned" if final_figures.finetuned else "after the last round"
    metric_texts = [
        f"{metric.title} {share(test_metrics[f'test/{FILTERED}/{metric.name}'])}"
        for metric in headline_metrics()
    ]
    logger.info(f"{algorithm_name}  finished; test {stage_text}: {', '.join(metric_texts)}")
    return algorithm_result


def _write_data_facts(run_log: RunLog, roster: Roster) -> None:
    """data.json: the nodes' own description, the same from all unless each has its own data."""
    node_descriptions = list(dict.fromkeys(member.description for member in roster.members))
    data_facts = json.loads(node_descriptions[0]) if len(node_descriptions) == 1 else {}
    run_log.write(
        "data.json",
        {
            **data_facts,
            "split_digest": roster.split_digest,
            "split_users": roster.users,
            "clients": len(roster.clients),
            "nodes": len(roster.members),
            "coverage": {split_name: roster.coverage(split_name) for split_name in SPLITS},
        },
    )
    logger.info(
        f"{len(roster.members)} nodes, {len(roster.clients)} clients, {roster.users} users; "
        f"split {roster.split_digest[:12]}"
    )
