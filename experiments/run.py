"""What each part is worth: every arm on the same split with the same seeds, on the plain loop.

    python -m experiments.run --seeds 0 1 2 --jobs 2

One arm and seed is one process and one record, see :mod:`experiments.records`; what is recorded
already is not computed again, so a long table can be made in pieces, and an interrupted one goes on
where it stopped. Every record names its commit: remove the records that a change makes stale. The
round is chosen on validation NDCG@10; test figures are those of that round.
``python -m experiments.tables`` turns the records into the tables of docs/results, with paired
bootstrap intervals.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.arms.histories import history_arms
from experiments.arms.items import (
    bytes_of_a_round,
    evaluate_all,
    figures,
    item_arms,
    user_means,
    views_of,
)
from experiments.arms.markets import RECIPE as MARKETS
from experiments.arms.markets import is_market_arm, market_arms, run_market_arm
from experiments.records import MAIN, RECORDS, RecordStore
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.client import ClientEvaluation
from pfsr_core.federated import simulation
from pfsr_core.federated.algorithm import ServerState
from pfsr_core.params import Params
from pfsr_core.runs.environment import commit
from pfsr_core.runs.local import ALL_DATA, ONE_CLIENT
from pfsr_core.runs.local_evaluation import Evaluations, evaluate_splits
from pfsr_core.settings.fields import Value
from pfsr_core.settings.recipes import load_recipe, with_overrides

RECIPE = Path("recipes/pfsr.toml")
Overrides = dict[str, Value]

FED_AVG: Overrides = {"algorithm.name": "fed-avg"}
LOCAL: Overrides = {"algorithm.name": "local-only"}
SHARED: Overrides = {"model.items": "shared"}
# Rows that start at random have to move further than rows that start from co-occurrence.
COMMON: Overrides = {"model.item-start": "common", "train.item-learning-rate": 0.002}
SECRET: Overrides = {"model.item-start": "secret", "train.item-learning-rate": 0.002}
# Averaging shrinks what single clients learn of an item: larger steps that shrink over the rounds.
SHARED_TABLE: Overrides = {
    **FED_AVG,
    **SHARED,
    **COMMON,
    "federation.rounds": 24,
    "model.dropout": 0.2,
    "train.learning-rate": 0.006,
    "train.item-learning-rate": 0.006,
    "train.local-epochs": 2,
    "train.round-decay": 0.95,
    "model.item-std": 0.02,
}
NO_LOSS: Overrides = {
    "algorithm.pfsr.anchor-strength": 0.0,
    "algorithm.pfsr.magnitude-strength": 0.0,
}
# FedDPA's constraint, in which small changes are pulled up to C_t too. Parts of PFSR were varied
# around it.
TWO_SIDED: Overrides = {"algorithm.pfsr.magnitude-side": "both"}
# The default budget ends while the federated curves still rise; these do not stop there.
TWICE: Overrides = {"federation.rounds": 48}
SHARED_LONG: Overrides = {
    **SHARED_TABLE,
    "federation.rounds": 72,
    "train.round-decay": 0.98,
}
CENTRAL: Overrides = {**ALL_DATA, **ONE_CLIENT, "federation.rounds": 30}
FED_DPA: Overrides = {
    **TWO_SIDED,
    "algorithm.pfsr.mask-mode": "minmax",
    "algorithm.pfsr.two-phases": True,
    "algorithm.pfsr.serve": "personal",
}
ONE_USER: Overrides = {
    "federation.partition": "user",
    "algorithm.pfsr.fisher-samples": 8,
    "federation.rounds": 2,
}


def _clients(users: int) -> Overrides:
    return {"federation.clients": 943 // users}


ARMS: dict[str, Overrides] = {
    "pfsr": {},
    "fed-avg": FED_AVG,
    "local-only": LOCAL,
    "central": CENTRAL,
    "fed-avg, shared table": SHARED_TABLE,
    "fed-avg, shared table, 72 rounds": SHARED_LONG,
    "two-sided, 48 rounds": {**TWO_SIDED, **TWICE},
    "fed-avg, 48 rounds": {**FED_AVG, **TWICE},
    "local-only, 48 rounds": {**LOCAL, **TWICE},
    "vrm without dml": NO_LOSS,
    "two-sided": TWO_SIDED,
    "two-sided, common start": {**TWO_SIDED, **COMMON},
    "two-sided, secret start": {**TWO_SIDED, **SECRET},
    "fed-avg, common start": {**FED_AVG, **COMMON},
    "fed-avg, secret start": {**FED_AVG, **SECRET},
    "local-only, common start": {**LOCAL, **COMMON},
    "two-sided, forward only": {**TWO_SIDED, "model.encoder": "mamba"},
    "central, forward only": {**CENTRAL, "model.encoder": "mamba"},
    "central, sasrec": {**CENTRAL, "model.encoder": "sasrec", "model.num-heads": 2},
    "central, gru4rec": {**CENTRAL, "model.encoder": "gru4rec"},
    "two-sided, anchor global": {**TWO_SIDED, "algorithm.pfsr.anchor": "global"},
    "pfsr, serves the personal encoder": {"algorithm.pfsr.serve": "personal"},
    "two-sided, rho .05": {**TWO_SIDED, "algorithm.pfsr.rho": 0.05},
    "two-sided, rho .5": {**TWO_SIDED, "algorithm.pfsr.rho": 0.5},
    "pfsr, count aggregation": {"algorithm.pfsr.aggregation": "count"},
    "pfsr, two phases": {"algorithm.pfsr.two-phases": True},
    "pfsr, as in FedDPA": FED_DPA,
    "fed-prox": {"algorithm.name": "fed-prox"},
    "pfsr, clients of 100": _clients(100),
    "two-sided, clients of 100": {**TWO_SIDED, **_clients(100)},
    "vrm without dml, clients of 100": {**NO_LOSS, **_clients(100)},
    "fed-avg, clients of 100": {**FED_AVG, **_clients(100)},
    "local-only, clients of 100": {**LOCAL, **_clients(100)},
    "pfsr, clients of 20": _clients(20),
    "two-sided, clients of 20": {**TWO_SIDED, **_clients(20)},
    "fed-avg, clients of 20": {**FED_AVG, **_clients(20)},
    "local-only, clients of 20": {**LOCAL, **_clients(20)},
    # 64 samples of every client would be most of the work where there are hundreds of clients.
    "two-sided, clients of 5": {
        **TWO_SIDED,
        **_clients(5),
        "algorithm.pfsr.fisher-samples": 16,
    },
    "pfsr, clients of 5": {**_clients(5), "algorithm.pfsr.fisher-samples": 16},
    "fed-avg, clients of 5": {**FED_AVG, **_clients(5)},
    # A user's held-out item is none of its history, so its client cannot rank it, however long it
    # trains. Two rounds show that nothing else is wrong.
    "pfsr, one user a client": ONE_USER,
    "fed-avg, one user a client": {**ONE_USER, **FED_AVG},
    **item_arms(),
    **market_arms(),
    **history_arms(),
}


def recipe_of(arm: str) -> Path:
    """What the arm changes, unless another recipe is given."""
    return MARKETS if is_market_arm(arm) else RECIPE


def arm_settings(arm: str, seed: int, recipe: Mapping[str, Value]) -> Settings:
    """The settings of a recipe with what the arm changes."""
    return parse_settings({**recipe, **ARMS[arm], "run.seed": seed})


def run_arm(settings: Settings, every: int) -> dict[str, Any]:
    """Trains one arm; the record of its best round by validation NDCG@10."""
    federation = load_federation(settings)
    assembly = assemble(settings, federation.catalogue)
    started, length = time.process_time(), settings.model.max_length
    ends: list[tuple[ServerState, Mapping[str, Params]]] = []
    best: dict[str, Any] = {"valid": -1.0}
    history: list[dict[str, float]] = []

    def look(report: simulation.RoundReport) -> None:
        round_ = report.server.round
        if round_ % every and round_ != settings.federation.rounds:
            return
        record = record_of(evaluate_all(assembly, length, report.server, report.states, federation))
        metrics = report.reply.metrics
        loss = metrics["train-loss"] / max(1.0, metrics["train-targets"])
        kept = metrics.get("mask-ratio/", 0.0) / metrics.get("clients", 1.0)
        history.append(
            {"round": round_, "valid": record["valid"], "test": record["test"], "loss": loss}
        )
        if record["valid"] > best["valid"]:
            best.update(record, round=round_, kept=kept)
            ends[:] = [(report.server, report.states)]

    simulation.run(
        assembly.algorithm,
        federation.clients,
        rounds=settings.federation.rounds,
        seed=settings.run.seed,
        participation=settings.federation.participation,
        on_round=look,
    )
    return {
        **best,
        **bytes_of_a_round(assembly),
        "views": views_of(assembly, length, *ends[0], federation),
        "history": history,
        "split": federation.split.digest,
        "protocol": federation.split.protocol,
        "cpu_seconds": time.process_time() - started,
    }


def record_of(found: Evaluations) -> dict[str, Any]:
    """Validation and test NDCG@10, all means, and every user's test rank by raw id."""
    test = found["test"]
    return {
        **figures(found),
        "valid_means": user_means(found["valid"]),
        "ranks": _by_user(test),
        "lengths": {
            user: int(length)
            for one in test
            for user, length in zip(one.users, one.history_lengths, strict=True)
        },
    }


def run_baselines(settings: Settings) -> dict[str, Any]:
    """The client-side baselines on the partition of ``settings``, each a record."""
    federation = load_federation(settings)
    return {name: record_of(evaluate_splits(fit, federation)) for name, fit in BASELINES.items()}


def _by_user(evaluations: Sequence[ClientEvaluation]) -> dict[str, int]:
    return {
        user: int(rank)
        for one in evaluations
        for user, rank in zip(one.users, one.ranks_filtered, strict=True)
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command: the arms and seeds without a record, each in a process of its own."""
    options = _options(argv)
    store = RecordStore(options.records, options.collection)
    if options.worker:
        store.append(_work(options))
        return 0
    arms, recorded = options.arms or [*ARMS, "baselines"], store.keys()
    jobs = [(arm, seed) for arm in arms for seed in options.seeds]
    todo = [job for job in jobs if job not in recorded]
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            codes = list(pool.map(_launcher(options), todo))
    finally:
        store.merge()
    return max(codes, default=0)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", metavar="ARM", choices=[*ARMS, "baselines"])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--every", type=int, default=3, help="rounds between evaluations")
    parser.add_argument("--recipe", type=Path, help="default: the one of each arm")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of all arms")
    parser.add_argument("--records", type=Path, default=RECORDS, help="directory of the records")
    parser.add_argument("--collection", default=MAIN, help="of the records, one for each data set")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _launcher(options: argparse.Namespace) -> Callable[[tuple[str, int]], int]:
    def launch(job: tuple[str, int]) -> int:
        arm, seed = job
        command = [sys.executable, "-m", "experiments.run", "--worker", "--arms", arm]
        command += ["--seeds", str(seed), "--every", str(options.every)]
        command += ["--recipe", str(options.recipe or recipe_of(arm))]
        command += ["--records", str(options.records), "--collection", options.collection]
        command += ["--set", *options.set] if options.set else []
        code = subprocess.run(command, check=False).returncode
        sys.stderr.write(f"{arm}, seed {seed}: {'done' if code == 0 else f'failed ({code})'}\n")
        return code

    return launch


def _work(options: argparse.Namespace) -> dict[str, Any]:
    """The record of the one arm and seed of ``options``."""
    torch.set_num_threads(1)
    arm, seed = options.arms[0], options.seeds[0]
    recipe = with_overrides(load_recipe(options.recipe), options.set)
    started = time.process_time()
    if arm == "baselines":
        settings = parse_settings({**recipe, "run.seed": seed})
        one = replace(settings, federation=replace(settings.federation, clients=1))
        result: dict[str, Any] = {"client": run_baselines(settings), "central": run_baselines(one)}
    elif is_market_arm(arm):
        result = run_market_arm(arm, arm_settings(arm, seed, recipe), options.every)
    else:
        result = run_arm(arm_settings(arm, seed, recipe), options.every)
    changed = [one for one in options.set if not one.startswith("data.path=")]  # of one machine
    facts = {"arm": arm, "seed": seed, "commit": commit()[:7] or "unknown", "set": changed}
    return {**facts, "cpu_seconds": time.process_time() - started, **result}


if __name__ == "__main__":
    sys.exit(main())
