"""Markets in the ablation: what learning together is worth to each, and what soft targets do to it.

The arms change recipes/fecosr.toml; ``--set data.source=... data.path=...`` gives them other
markets. An arm pretrains on all markets, on the largest one alone (one-to-one transfer), or on all
users pooled, chooses its round on validation, and finetunes in every market. Its record holds, for
each of its parts (the pretrained model, the federated result, the local one, what is shipped; where
nothing is trained alone the federated result is what is shipped), the validation and test figures
of every market and the test rank of every user, so that two parts can be compared on the same
users; and how alike the markets' updates were in each round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfsr_core.algorithms.fecosr import SHIPPED
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import Federation, load_federation
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.evaluation.client import ClientEvaluation
from pfsr_core.evaluation.ranking import per_user
from pfsr_core.federated import simulation
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    Personalize,
    ServerState,
)
from pfsr_core.federated.evaluation import ClientModels, split_means
from pfsr_core.federated.model import Assembly
from pfsr_core.params import Params, flatten
from pfsr_core.runs.files import SELECTORS
from pfsr_core.runs.local_evaluation import Evaluations, evaluate_personal, evaluate_splits, given
from pfsr_core.settings.fields import Value

RECIPE = Path("recipes/fecosr.toml")
PRETRAINED, SHIPS = "pretrained", "shipped"  # parts; the others are views of the algorithm
START = "markets, "
ALL, LARGEST, POOLED = "all", "largest", "pooled"
CROSS_ENTROPY: dict[str, Value] = {"train.semantic-share": 0.0}
ALONE: dict[str, Value] = {"algorithm.safety-rule": False}
SHARES = (0.1, 0.5, 1.0)

Overrides = dict[str, Value]
Found = Mapping[str, Any]

ARMS: dict[str, tuple[str, Overrides]] = {
    "fecosr": (ALL, {}),
    "fecosr, adapter alone": (ALL, {"algorithm.finetune-mode": "adapter", **ALONE}),
    "fecosr, all but the adapter": (ALL, {"algorithm.finetune-mode": "all"}),
    "fecosr, cross-entropy": (ALL, {**CROSS_ENTROPY}),
    **{
        f"fecosr, share {share:g}": (ALL, {"train.semantic-share": share, **ALONE})
        for share in SHARES
    },
    "fecosr, users weigh alike": (ALL, {"algorithm.weight-power": 1.0, **ALONE}),
    "one to one": (LARGEST, {**CROSS_ENTROPY, **ALONE}),
    "pooled": (POOLED, {**CROSS_ENTROPY, **ALONE}),
    "fed-avg, adapters in the rounds": (ALL, {"algorithm.name": "fed-avg", **CROSS_ENTROPY}),
    "pfsr": (ALL, {"algorithm.name": "pfsr", **CROSS_ENTROPY}),
    "pfsr, soft targets": (ALL, {"algorithm.name": "pfsr"}),
}
"""Whom the rounds train, and what is otherwise than in the recipe."""


def market_arms() -> dict[str, Overrides]:
    """Settings by arm: ``markets, <name>``."""
    baselines: dict[str, Overrides] = {f"{START}baselines": {}}
    return {START + name: overrides for name, (_, overrides) in ARMS.items()} | baselines


def is_market_arm(arm: str) -> bool:
    """Whether the arm is one of this file."""
    return arm.startswith(START)


def run_market_arm(arm: str, settings: Settings, every: int) -> dict[str, Any]:
    """The record of one arm, see above. ``every``: rounds between evaluations."""
    federation = load_federation(settings)
    if arm == f"{START}baselines":
        return {"parts": baseline_parts(federation), "split": federation.split.digest}
    source = ARMS[arm.removeprefix(START)][0]
    return _trained(settings, federation, _trainers(source, federation.clients), every)


def baseline_parts(federation: Federation) -> dict[str, Found]:
    """The baselines in each market alone, and fitted to the users of all."""
    (pool,) = _trainers(POOLED, federation.clients)
    fitted = dict(BASELINES)
    fitted |= {f"pooled {n}": partial(given, fit(pool)) for n, fit in BASELINES.items()}
    return {name: by_market(evaluate_splits(fit, federation)) for name, fit in fitted.items()}


def _trainers(source: str, markets: Sequence[ClientDataset]) -> Sequence[ClientDataset]:
    """Whom the rounds train."""
    if source == LARGEST:
        return [max(markets, key=lambda data: data.num_interactions)]
    if source == POOLED:
        users = tuple(user for data in markets for user in data.users)
        first = markets[0]
        return [ClientDataset(POOLED, users, first.item_ids, protocol=first.protocol)]
    return markets


def _trained(
    settings: Settings, federation: Federation, trainers: Sequence[ClientDataset], every: int
) -> dict[str, Any]:
    assembly = assemble(settings, federation.catalogue)
    length, rounds = settings.model.max_length, settings.federation.rounds
    selected_by, best = SELECTORS[settings.run.selected_by], -1.0
    chosen: list[tuple[ServerState, Evaluations]] = []
    updates: dict[int, list[Tensor]] = {}

    def look(report: simulation.RoundReport) -> None:
        nonlocal best
        if report.server.round % every and report.server.round != rounds:
            return
        found = _evaluated(assembly, length, report.server, report.states, federation)
        valid = split_means(found)[selected_by]
        if valid > best:
            best, chosen[:] = valid, [(report.server, found)]

    _, newest = simulation.run(
        _watched(assembly.algorithm, updates),
        trainers,
        rounds=rounds,
        seed=settings.run.seed,
        on_round=look,
    )
    server, found = chosen[0]
    parts, ships = {PRETRAINED: by_market(found)}, {}
    if assembly.algorithm.states_fit_any_round:
        after = simulation.finetune_clients(
            assembly.algorithm, server.broadcast(), newest, federation.clients
        )
        ships = {name: assembly.algorithm.outcome(state) for name, state in after.items()}
        ways = {SHIPS: assembly.algorithm.personalize, **assembly.algorithm.views}
        for way, personalize in ways.items():
            ended = _evaluated(assembly, length, server, after, federation, personalize)
            parts[way] = by_market(ended)
    return {
        "parts": parts,
        "ships_federated": {name: told[SHIPPED] for name, told in ships.items() if told},
        "cosines": {round_: mean_cosine(changes) for round_, changes in updates.items()},
        "round": server.round,
        "split": federation.split.digest,
    }


def _evaluated(
    assembly: Assembly,
    length: int,
    server: ServerState,
    states: Mapping[str, Params],
    federation: Federation,
    personalize: Personalize | None = None,
) -> Evaluations:
    """Every market with the model that ``personalize`` makes, else the algorithm's own way."""
    own = assembly.algorithm.personalize
    algorithm = replace(assembly.algorithm, views={}, personalize=personalize or own)
    one = replace(assembly, algorithm=algorithm)
    return evaluate_personal(ClientModels(one, length, server.params, states), federation)


def _watched(algorithm: FederatedAlgorithm, updates: dict[int, list[Tensor]]) -> FederatedAlgorithm:
    """The algorithm, whose clients' changes of the shared parameters are put into ``updates``."""

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        found = algorithm.client_updates(broadcast, states, datasets)
        start = flatten(broadcast.params)
        changes = [flatten({n: one.params[n] for n in broadcast.params}) - start for one in found]
        updates.setdefault(broadcast.round, []).extend(changes)
        return found

    return replace(algorithm, client_updates=client_updates)


def mean_cosine(changes: Sequence[Tensor]) -> float | None:
    """Mean cosine of all pairs; None for fewer than two."""
    pairs = [torch.cosine_similarity(a, b, dim=0).item() for a, b in combinations(changes, 2)]
    return float(np.mean(pairs)) if pairs else None


def by_market(found: Evaluations) -> dict[str, dict[str, Any]]:
    """Figures of each market, and the test rank of each user by raw id."""
    pairs = zip(found["valid"], found["test"], strict=True)
    return {test.client: _market(valid, test) for valid, test in pairs}


def _market(valid: ClientEvaluation, test: ClientEvaluation) -> dict[str, Any]:
    users = max(1, len(test.users))
    return {
        "users": len(test.users),
        "valid": float(per_user(valid.ranks_filtered, "ndcg@10").sum()) / users,
        "test": float(per_user(test.ranks_filtered, "ndcg@10").sum()) / users,
        "ranks": dict(zip(test.users, test.ranks_filtered.tolist(), strict=True)),
    }
