"""The server side of Flower: settings, nodes, rounds of each algorithm, summary."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.settings import Settings, flat_settings, parse_settings
from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import Catalogue
from pfsr_core.params import fingerprint
from pfsr_core.reports.columns import share
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import final_table
from server_app.checkpoints import Progress, load_checkpoint, save_checkpoint
from server_app.final_round import Finish, evaluate_last, finish
from server_app.instructions import Training
from server_app.membership import gather
from server_app.roster import Roster
from server_app.run_log import RunLog, open_run, progress_line, say, speak, write_model
from server_app.strategy import Line, better, complete, run_rounds, users_to_evaluate
from server_app.summary import ask_baselines, federated_result, write_summary

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    speak()
    show(run_federation(grid, parse_settings(context.run_config)))


@dataclass(frozen=True)
class Run:
    """What all algorithms of a run have in common."""

    grid: Grid
    settings: Settings
    log: RunLog
    hello: Mapping[str, Any]
    roster: Roster


def run_federation(grid: Grid, settings: Settings) -> RunLog:
    """A whole run: the algorithm of the settings, then those of ``run.compare``."""
    started = time.monotonic()
    names = algorithm_names(settings)
    log = open_run(settings)
    say(f"run {log.run_id}: {' '.join(names)}; files in {log.directory}")
    hello = {"run": log.run_id, "warm-start": settings.run.warm_start}
    federation = settings.federation
    roster = gather(grid, hello, timeout=federation.start_timeout, min_nodes=federation.min_nodes)
    for node, refusal in roster.refused.items():
        say(f"node {node} cannot take part: {refusal.reason}")
    _describe(log, roster)
    if settings.run.baselines:
        ask_baselines(grid, log, roster, settings.federation.round_timeout)
    run = Run(grid, settings, log, hello, roster)
    results = {name: _train(run, name) for name in names}
    write_summary(log, roster, settings.data.protocol, results, time.monotonic() - started)
    return log


def show(log: RunLog) -> None:
    """The final table, and the report's page beside the run's files."""
    say("")
    say(final_table(log.directory))
    say(f"report: {write_report(log.directory)}")


def assembly_of(settings: Settings, roster: Roster) -> Assembly:
    """The server's half of the model. It knows the items only where their table is shared."""
    known = roster.members[0].item_ids
    count = max(member.num_items for member in roster.members)
    ids = known or tuple(map(str, range(1, count + 1)))
    return assemble(settings, Catalogue(ids, known=bool(known)))


def _train(run: Run, name: str) -> dict[str, Any]:
    """One algorithm from its checkpoint, or from the start, to its result."""
    directory = f"checkpoint-{name}"
    done: dict[str, Any] | None = run.log.read(f"{directory}/result.json")
    if done is not None:
        say(f"{name}  was finished before")
        return done
    settings = replace(run.settings, algorithm=replace(run.settings.algorithm, name=name))
    assembly = assembly_of(settings, run.roster)
    mark = fingerprint(assembly.shapes, name, run.roster.split_digest)
    progress = load_checkpoint(run.log.path(directory), mark)
    progress = progress or Progress(assembly.algorithm.init())
    run.log.forget_rounds(name, progress.pending["round"] if progress.pending else 0)
    training = Training(run.grid, run.log.run_id, settings, assembly.algorithm, run.hello)

    def on_round(before: Progress, after: Progress, whole: Line | None) -> None:
        if whole is not None:
            run.log.add_round(whole)
        if after.best != before.best:
            _keep_model(run, settings, "best", before)
        save_checkpoint(run.log.path(directory), after, mark)
        say(_progress(settings, after, whole))

    roster, progress = run_rounds(training, run.roster, progress, on_round)
    compared, last = evaluate_last(training, roster, progress)
    if compared.best != progress.best:
        _keep_model(run, settings, "best", progress)
    outcome = finish(training, roster, compared, install=name == run.settings.algorithm.name)
    return _close(run, training, compared, replace(outcome, last=last or outcome.last))


def _close(run: Run, training: Training, progress: Progress, outcome: Finish) -> dict[str, Any]:
    """Writes the last line and the models; the result that marks the algorithm as done."""
    settings, name = training.settings, training.name
    run.log.forget_rounds(name, progress.server.round)
    run.log.add_round(complete(dict(progress.pending or {}), outcome.last))
    users = users_to_evaluate(settings, run.roster)
    best = better(progress.best, progress.server.round, outcome.last, users, training.selected_by)
    if best != progress.best:
        _keep_model(run, settings, "best", progress)
    _keep_model(run, settings, "last", progress)
    progress = replace(progress, best=best)
    entry = federated_result(name, progress, outcome, serves_best=training.serves_best)
    result = {"entry": entry, "rows": list(outcome.clients)}
    run.log.write(f"checkpoint-{name}/result.json", result)
    for what, count in outcome.outcome.items():
        say(f"{name}  {what}: {count:g} of {len(run.roster.clients)} clients")
    figures = outcome.finetuned or outcome.last
    when = "as finetuned" if outcome.finetuned else "after the last round"
    say(
        f"{name}  finished; test {when}: "
        f"HR@10 {share(figures['test/seen-filtered/hr@10'])}, "
        f"NDCG@10 {share(figures['test/seen-filtered/ndcg@10'])}"
    )
    return result


def _keep_model(run: Run, settings: Settings, kind: str, progress: Progress) -> None:
    """The shared model as ``best`` or ``last``; of a compared algorithm with its name."""
    name = settings.algorithm.name
    main = name == run.settings.algorithm.name
    facts = {"round": progress.server.round, "settings": flat_settings(settings)}
    ids = run.roster.members[0].item_ids
    place = kind if main else f"{kind}-{name}"
    write_model(run.log, place, progress.server.params, facts, ids)


def _describe(log: RunLog, roster: Roster) -> None:
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
    say(
        f"{len(roster.members)} nodes, {len(roster.clients)} clients, {roster.users} users; "
        f"split {roster.split_digest[:12]}"
    )


def _progress(settings: Settings, progress: Progress, whole: Line | None) -> str:
    rounds, done = settings.federation.rounds, progress.server.round
    left = progress.seconds / done * (rounds - done)
    figures = {name: value for name, value in (whole or {}).items() if "/" in name}
    return progress_line({**(progress.pending or {}), **figures}, rounds, left)
