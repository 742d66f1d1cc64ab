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
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.params import fingerprint
from pfsr_core.reports.columns import share
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import final_table
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
    with_metrics,
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
    started = time.monotonic()
    names = algorithm_names(settings)
    log = open_run(settings)
    logger.info(f"run {log.run_id}: {' '.join(names)}; files in {log.directory}")
    registration = {"run": log.run_id, "warm-start": settings.run.warm_start}
    federation = settings.federation
    roster = gather_nodes(
        grid, registration, timeout=federation.start_timeout, min_nodes=federation.min_nodes
    )
    for node, refusal in roster.refused.items():
        logger.info(f"node {node} cannot take part: {refusal.reason}")
    _write_data_facts(log, roster)
    if settings.run.baselines:
        ask_baselines(grid, log, roster, settings.federation.round_timeout)
    run = Run(grid, settings, log, registration, roster)
    results = {name: train_algorithm(run, name) for name in names}
    write_summary(log, roster, settings.data.protocol, results, time.monotonic() - started)
    return log


def print_results(log: RunLog) -> None:
    """Logs the final table, and writes the report's page beside the run's files."""
    logger.info("")
    logger.info(final_table(log.directory))
    logger.info(f"report: {write_report(log.directory)}")


def train_algorithm(run: Run, name: str) -> dict[str, Any]:
    """One algorithm from its checkpoint, or from the start, to its result."""
    directory = f"checkpoint-{name}"
    done: dict[str, Any] | None = run.log.read(f"{directory}/result.json")
    if done is not None:
        logger.info(f"{name}  was finished before")
        return done
    settings = replace(run.settings, algorithm=replace(run.settings.algorithm, name=name))
    assembly = server_model(settings, run.roster)
    training = Training(
        run.log,
        settings,
        assembly.algorithm,
        fingerprint(assembly.shapes, name, run.roster.split_digest),
        run.registration,
        item_ids=run.roster.members[0].item_ids,
        is_main=name == run.settings.algorithm.name,
    )
    progress = load_checkpoint(run.log.path(directory), training.fingerprint)
    progress = progress or Progress(training.algorithm.server.init())
    run.log.forget_rounds(name, progress.pending["round"] if progress.pending else 0)
    strategy = PersonalizedStrategy(training, run.roster, progress)
    federation = settings.federation
    strategy.start(
        run.grid,
        to_arrays(progress.server),
        num_rounds=federation.rounds,
        timeout=federation.round_timeout,
    )
    finished = finish(run.grid, training, strategy.roster, strategy.progress)
    last = strategy.last_evaluation or finished.last
    return _write_result(run, training, strategy.progress, replace(finished, last=last))


def server_model(settings: Settings, roster: Roster) -> Assembly:
    """The server's half of the model. It knows the items only where their table is shared."""
    known = roster.members[0].item_ids
    count = max(member.num_items for member in roster.members)
    ids = known or tuple(map(str, range(1, count + 1)))
    return assemble(settings, ItemCatalogue(ids, known=bool(known)))


def _write_result(
    run: Run, training: Training, progress: Progress, finished: Finish
) -> dict[str, Any]:
    """Writes the last line and the models; the result that marks the algorithm as done."""
    name = training.name
    run.log.forget_rounds(name, progress.server.round)
    run.log.add_round(with_metrics(progress.pending or {}, finished.last))
    best = update_best(training, run.roster, progress, finished.last).best
    if best != progress.best:
        keep_model(training, "best", progress.server)
    keep_model(training, "last", progress.server)
    progress = replace(progress, best=best)
    entry = federated_result(name, progress, finished, serves_best=training.serves_best)
    result = {"entry": entry, "rows": list(finished.clients)}
    run.log.write(f"checkpoint-{name}/result.json", result)
    for what, count in finished.outcome.items():
        logger.info(f"{name}  {what}: {count:g} of {len(run.roster.clients)} clients")
    figures = finished.finetuned or finished.last
    when = "as finetuned" if finished.finetuned else "after the last round"
    logger.info(
        f"{name}  finished; test {when}: "
        f"HR@10 {share(figures['test/seen-filtered/hr@10'])}, "
        f"NDCG@10 {share(figures['test/seen-filtered/ndcg@10'])}"
    )
    return result


def _write_data_facts(log: RunLog, roster: Roster) -> None:
    """data.json: the nodes' own description, the same from all unless each has its own data."""
    descriptions = list(dict.fromkeys(member.description for member in roster.members))
    facts = json.loads(descriptions[0]) if len(descriptions) == 1 else {}
    log.write(
        "data.json",
        {
            **facts,
            "split_digest": roster.split_digest,
            "split_users": roster.users,
            "clients": len(roster.clients),
            "nodes": len(roster.members),
            "coverage": {split: roster.coverage(split) for split in SPLITS},
        },
    )
    logger.info(
        f"{len(roster.members)} nodes, {len(roster.clients)} clients, {roster.users} users; "
        f"split {roster.split_digest[:12]}"
    )
