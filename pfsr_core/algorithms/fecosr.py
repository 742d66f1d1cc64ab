"""FeCoSR: markets that learn together and none that loses by it (after arXiv 2604.13573).

    stage 1   pretrain, the rounds: FedAvg of encoder and projection with semantic soft targets
              (``train.semantic-share``) and weights n_m^power. Item rows are never sent, and the
              market adapter stays at zero: item vectors are the projected public ones.
    stage 2   finetune, on the node, nothing is sent: from the shared model of the chosen round,
              with hard targets, of the parts that ``mode`` names. The epoch with the best
              validation NDCG@10 is kept; epoch 0 is stage 1's model, as the adapter starts at zero.
    rule      a market ships the result only if it beats, on its validation NDCG@10, what the market
              reaches alone; else it ships that.

The rule's model alone has the same parts, batches and epochs: it is trained beside every round,
with hard targets, as nothing has to agree with other markets, kept at its best round, and finetuned
in the same way. That doubles the cost of a round on the node, and the node keeps two encoders more.
Of its parameters nothing is sent. Sums of its figures are, as of every view: each round, and by
client after the last one, when which of the two is shipped is counted as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import fed_avg, update_of
from pfsr_core.algorithms.server_optimizers import ServerStep, average
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.client import evaluate_client, user_values
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    Personalize,
    Sums,
)
from pfsr_core.params import Params, select
from pfsr_core.randomness import stream_seed
from pfsr_core.training.batched import Trained, train_clients
from pfsr_core.training.fisher import Masks
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.task import Task, TaskLoss

FEDERATED, LOCAL = "federated", "local"  # views; in a finetuned state also prefixes
ALONE, ALONE_BEST = "alone", "alone-best"  # prefixes: the model alone now, and at its best round
SCORE = "alone-best-score"
SHIPS = "ships-federated"
SHIPPED = "shipped-federated"
"""Sum of an outcome: how many clients ship the federated result."""


@dataclass(frozen=True)
class Finetuning:
    """Stage 2. ``mode``: "adapter" trains the adapter alone, "all" all but it, "all+adapter" both.

    Private rows of users, where the model has them, belong to the adapter.
    ``step``: step sizes over those of the first round. ``safety_rule``: whether a model alone is
    trained beside, and the better one shipped.
    """

    mode: str = "all+adapter"
    epochs: int = 10
    step: float = 1.0
    safety_rule: bool = True


class Scored(NamedTuple):
    """A whole model, and its validation NDCG@10 (1,)."""

    score: Tensor
    params: Params


@dataclass(frozen=True)
class Stages:
    """How clients train in either stage. The private part of ``task`` is the adapter."""

    task: Task
    training: LocalTraining
    finetuning: Finetuning

    @property
    def hard(self) -> Task:
        """The task without soft targets: of finetuning, and of the model alone."""
        return replace(self.task, loss=TaskLoss())

    @property
    def held(self) -> frozenset[str]:
        """The names that stage 2 does not move."""
        partition = self.task.partition
        held = {"adapter": partition.shared, "all": partition.private, "all+adapter": frozenset()}
        return held[self.finetuning.mode]

    def pretrained(
        self, task: Task, starts: Sequence[Params], datasets: Sequence[ClientDataset], round_: int
    ) -> list[Trained]:
        """Whole models after a round of stage 1 with the targets of ``task``; adapters stay."""
        jobs = [
            self._job(start, data, ("client", data.client, round_), self.task.partition.private)
            for start, data in zip(starts, datasets, strict=True)
        ]
        return train_clients(task, self.training.in_round(round_), jobs)

    def trained_alone(
        self, states: Sequence[Params], datasets: Sequence[ClientDataset], round_: int
    ) -> list[Params]:
        """What the states hold of the models alone, a round later."""
        shared, private = self.task.partition.shared, self.task.partition.private
        starts = [{**_under(state, ALONE), **select(state, private)} for state in states]
        found = self.pretrained(self.hard, starts, datasets, round_)
        return [
            _after_round(state, Scored(self.scored(whole, data).score, select(whole, shared)))
            for state, (whole, _), data in zip(states, found, datasets, strict=True)
        ]

    def finetuned(
        self, starts: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Scored]:
        """Every client's best epoch of stage 2, the first of equals; epoch 0 is its start."""
        now = list(starts)
        best = list(map(self.scored, now, datasets))
        for epoch in range(1, self.finetuning.epochs + 1):
            now = self._epoch(now, datasets, epoch)
            pairs = zip(best, map(self.scored, now, datasets), strict=True)
            best = [new if new.score > old.score else old for old, new in pairs]
        return best

    def scored(self, whole: Params, data: ClientDataset) -> Scored:
        """The model and its score on the client's validation items, 0 without users."""
        scorer = make_scorer(self.task, whole, data, self.training.max_length)
        values = user_values([evaluate_client(scorer, data, "valid")], "ndcg@10")
        return Scored(torch.tensor([values.mean() if len(values) else 0.0]), whole)

    def _epoch(
        self, starts: Sequence[Params], datasets: Sequence[ClientDataset], epoch: int
    ) -> list[Params]:
        jobs = [
            self._job(start, data, ("finetune", data.client, epoch), self.held)
            for start, data in zip(starts, datasets, strict=True)
        ]
        config = replace(self.training.scaled(self.finetuning.step), local_epochs=1)
        return [whole for whole, _ in train_clients(self.hard, config, jobs)]

    def _job(
        self, start: Params, data: ClientDataset, stream: tuple[object, ...], held: frozenset[str]
    ) -> Job:
        seed = stream_seed(self.training.seed, *stream)
        return Job(start, data, seed, frozen=_all_of(start, held))


def fecosr(
    task: Task,
    training: LocalTraining,
    *,
    finetuning: Finetuning = Finetuning(),
    step: ServerStep = average,
    weight_power: float = 0.5,
) -> FederatedAlgorithm:
    """FeCoSR over a task whose private part is an adapter that starts at zero."""
    stages, private = Stages(task, training, finetuning), task.partition.private

    def init_client(data: ClientDataset) -> Params:
        alone = _named(ALONE, task.partition.init_shared()) if finetuning.safety_rule else {}
        return {**task.partition.init_private(data), **alone}

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        starts = [{**broadcast.params, **select(state, private)} for state in states]
        trained = stages.pretrained(task, starts, datasets, broadcast.round)
        alone: Sequence[Params] = [{}] * len(states)
        if finetuning.safety_rule:
            alone = stages.trained_alone(states, datasets, broadcast.round)
        updates = [
            update_of(task, broadcast, *one, data, weight_power)
            for one, data in zip(trained, datasets, strict=True)
        ]
        return [
            replace(update, state={**update.state, **own})
            for update, own in zip(updates, alone, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        adapters = [select(state, private) for state in states]
        federated = stages.finetuned([{**broadcast.params, **own} for own in adapters], datasets)
        ended = [
            {**own, **_named(FEDERATED, one.params)}
            for own, one in zip(adapters, federated, strict=True)
        ]
        if not finetuning.safety_rule:
            return ended
        local = stages.finetuned([_best_alone(state, private) for state in states], datasets)
        return [
            {**state, **_named(LOCAL, other.params), SHIPS: (one.score > other.score).float()}
            for state, one, other in zip(ended, federated, local, strict=True)
        ]

    views = {FEDERATED: partial(_federated, private), LOCAL: partial(_local, private)}
    return replace(
        fed_avg(task, training, step=step, weight_power=weight_power),
        init_client=init_client,
        client_updates=client_updates,
        personalize=_shipping(views[FEDERATED], views[LOCAL]),
        finetunes=finetunes,
        views=views if finetuning.safety_rule else {},
        outcome=shipped,
        states_fit_any_round=True,
    )


def shipped(state: Params) -> Sums:
    """Whether a finetuned client ships the federated result; nothing before the rule was asked."""
    return {SHIPPED: state[SHIPS].item()} if SHIPS in state else {}


def _shipping(federated: Personalize, local: Personalize) -> Personalize:
    """Before the end what stage 1 has reached, after it what is shipped."""

    def personalize(received: Params, state: Params) -> Params:
        ships_local = SHIPS in state and not state[SHIPS].item()
        return (local if ships_local else federated)(received, state)

    return personalize


def _federated(private: frozenset[str], received: Params, state: Params) -> Params:
    return _under(state, FEDERATED) or {**received, **select(state, private)}


def _local(private: frozenset[str], _received: Params, state: Params) -> Params:
    return _under(state, LOCAL) or _best_alone(state, private)


def _best_alone(state: Params, private: frozenset[str]) -> Params:
    """The model alone at its best round, or at its start."""
    return {**(_under(state, ALONE_BEST) or _under(state, ALONE)), **select(state, private)}


def _after_round(state: Params, new: Scored) -> Params:
    """What a state holds of the model alone, whose shared names are ``new`` now."""
    best, score = _under(state, ALONE_BEST), state.get(SCORE)
    if score is None or new.score > score:
        score, best = new
    return {**_named(ALONE, new.params), **_named(ALONE_BEST, best), SCORE: score}


def _all_of(params: Params, names: frozenset[str]) -> Masks:
    """Every coordinate of ``names``."""
    return {name: torch.ones_like(params[name], dtype=torch.bool) for name in names}


def _named(prefix: str, params: Params) -> Params:
    """Copies: a state is written to a file, which holds no tensor twice."""
    return {f"{prefix}/{name}": tensor.clone() for name, tensor in params.items()}


def _under(state: Params, prefix: str) -> Params:
    """Undoes :func:`_named`; empty where the state has none."""
    start = f"{prefix}/"
    return {n.removeprefix(start): tensor for n, tensor in state.items() if n.startswith(start)}
