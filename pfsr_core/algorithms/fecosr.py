"""FeCoSR: markets that learn together and none that loses by it (after arXiv 2604.13573).

    stage 1   pretrain, the rounds: FedAvg of encoder and projection with semantic soft targets
              (``train.semantic-share``) and weights n_m^power. Item rows are never sent, and the
              market adapter stays at zero: item vectors are the projected public ones.
    stage 2   finetune, on the node, nothing is sent: from the shared model of the chosen round,
              with hard targets, of the parts that ``finetune-mode`` names. The epoch with the best
              validation NDCG@10 is kept; epoch 0 is stage 1's model, as the adapter starts at zero.
    rule      a market ships the result only if it beats, on its validation NDCG@10, what the market
              reaches alone; else it ships that.

The rule's model alone has the same parts, batches and epochs: it is trained beside every round,
with hard targets, as nothing has to agree with other markets, kept at its best round, and finetuned
in the same way. That doubles the cost of a round on the node, and the node keeps two encoders more.
Of its parameters nothing is sent. Sums of its figures are, as of every variant: each round, and by
client after the last one, when which of the two is shipped is counted as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import fed_avg, update_of
from pfsr_core.algorithms.server_optimizers import PLAIN_MEAN, Averaging
from pfsr_core.algorithms.spec import AlgorithmSpec, ItemDemand, Labels
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.client import evaluate_client, user_values
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    Personalization,
    Personalize,
    Sums,
)
from pfsr_core.params import Params, of_prefix, select, with_prefix
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.fields import SettingsError, Value, setting
from pfsr_core.training.batched import Trained, train_clients
from pfsr_core.training.fisher import Masks
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.task import Task, TaskLoss

FEDERATED, LOCAL = "federated", "local"  # variants; in a finetuned state also prefixes
ALONE, ALONE_BEST = "alone", "alone-best"  # prefixes: the model alone now, and at its best round
SCORE = "alone-best-score"
SHIPS = "ships-federated"
SHIPPED = "shipped-federated"
"""Sum of an outcome: how many clients ship the federated result."""


@dataclass(frozen=True)
class FeCoSRSettings:
    """Finetuning on the clients (stage 2), and the safety rule."""

    finetune_mode: str = setting(
        "all+adapter",
        "what is finetuned: adapter, the market adapter and private rows of users; all, everything "
        "else; all+adapter, both",
        choices=("adapter", "all", "all+adapter"),
    )
    finetune_epochs: int = setting(
        10, "epochs of finetuning, of which the best by validation NDCG@10 is kept", low=1
    )
    finetune_step: float = setting(
        1.0, "learning rates of finetuning, relative to those of the first round", low=1e-6
    )
    safety_rule: bool = setting(
        True,
        "also train every client alone, and ship that model where it is the better one by "
        "validation NDCG@10",
    )


class Scored(NamedTuple):
    """A whole model, and its validation NDCG@10 (1,)."""

    score: Tensor
    params: Params


@dataclass(frozen=True)
class Stages:
    """How clients train in either stage. The private part of ``task`` is the adapter."""

    task: Task
    training: LocalTraining
    settings: FeCoSRSettings

    @property
    def hard(self) -> Task:
        """The task without soft targets: of finetuning, and of the model alone."""
        return replace(self.task, loss=TaskLoss())

    @property
    def held(self) -> frozenset[str]:
        """The names that stage 2 does not move."""
        partition = self.task.partition
        held = {"adapter": partition.shared, "all": partition.private, "all+adapter": frozenset()}
        return held[self.settings.finetune_mode]

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
        starts = [{**of_prefix(state, ALONE), **select(state, private)} for state in states]
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
        for epoch in range(1, self.settings.finetune_epochs + 1):
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
        rates = self.training.scaled(self.settings.finetune_step)
        config = rates.with_settings(local_epochs=1)
        return [whole for whole, _ in train_clients(self.hard, config, jobs)]

    def _job(
        self, start: Params, data: ClientDataset, stream: tuple[object, ...], held: frozenset[str]
    ) -> Job:
        seed = stream_seed(self.training.seed, *stream)
        return Job(start, data, seed, frozen=_all_of(start, held))


def fecosr(
    task: Task,
    training: LocalTraining,
    settings: FeCoSRSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """FeCoSR over a task whose private part is an adapter that starts at zero."""
    stages, private = Stages(task, training, settings), task.partition.private
    base = fed_avg(task, training, averaging)

    def init_client(data: ClientDataset) -> Params:
        alone = with_prefix(task.partition.init_shared(), ALONE) if settings.safety_rule else {}
        return {**task.partition.init_private(data), **alone}

    def updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        starts = [{**broadcast.params, **select(state, private)} for state in states]
        trained = stages.pretrained(task, starts, datasets, broadcast.round)
        alone: Sequence[Params] = [{}] * len(states)
        if settings.safety_rule:
            alone = stages.trained_alone(states, datasets, broadcast.round)
        replies = [
            update_of(task, broadcast, result, data, averaging.weight_power)
            for result, data in zip(trained, datasets, strict=True)
        ]
        return [
            replace(reply, state={**reply.state, **own})
            for reply, own in zip(replies, alone, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        adapters = [select(state, private) for state in states]
        federated = stages.finetuned([{**broadcast.params, **own} for own in adapters], datasets)
        ended = [
            {**own, **with_prefix(one.params, FEDERATED)}
            for own, one in zip(adapters, federated, strict=True)
        ]
        if not settings.safety_rule:
            return ended
        local = stages.finetuned([_best_alone(state, private) for state in states], datasets)
        return [
            {**state, **with_prefix(other.params, LOCAL), SHIPS: (one.score > other.score).float()}
            for state, one, other in zip(ended, federated, local, strict=True)
        ]

    variants = {FEDERATED: partial(_federated, private), LOCAL: partial(_local, private)}
    return replace(
        base,
        client=replace(
            base.client,
            init=init_client,
            updates=updates,
            finetunes=finetunes,
            states_fit_any_round=True,
        ),
        personalization=Personalization(
            model=_shipped_model(variants[FEDERATED], variants[LOCAL]),
            variants=variants if settings.safety_rule else {},
            outcome=shipped,
        ),
    )


def shipped(state: Params) -> Sums:
    """Whether a finetuned client ships the federated result; nothing before the rule was asked."""
    return {SHIPPED: state[SHIPS].item()} if SHIPS in state else {}


def _shipped_model(federated: Personalize, local: Personalize) -> Personalize:
    """Before the end what stage 1 has reached, after it what is shipped."""

    def model(received: Params, state: Params) -> Params:
        ships_local = SHIPS in state and not state[SHIPS].item()
        return (local if ships_local else federated)(received, state)

    return model


def _federated(private: frozenset[str], received: Params, state: Params) -> Params:
    return of_prefix(state, FEDERATED) or {**received, **select(state, private)}


def _local(private: frozenset[str], _received: Params, state: Params) -> Params:
    return of_prefix(state, LOCAL) or _best_alone(state, private)


def _best_alone(state: Params, private: frozenset[str]) -> Params:
    """The model alone at its best round, or at its start."""
    return {**(of_prefix(state, ALONE_BEST) or of_prefix(state, ALONE)), **select(state, private)}


def _after_round(state: Params, new: Scored) -> Params:
    """What a state holds of the model alone, whose shared names are ``new`` now."""
    best, score = of_prefix(state, ALONE_BEST), state.get(SCORE)
    if score is None or new.score > score:
        score, best = new
    return {**with_prefix(new.params, ALONE), **with_prefix(best, ALONE_BEST), SCORE: score}


def _all_of(params: Params, names: frozenset[str]) -> Masks:
    """Every coordinate of ``names``."""
    return {name: torch.ones_like(params[name], dtype=torch.bool) for name in names}


def refuse_unfit(values: Mapping[str, Value]) -> None:
    """Raises SettingsError for what has no place in the two stages; ``values`` by dotted key."""
    safety_rule = values["algorithm.fecosr.safety-rule"]
    if safety_rule and not values["algorithm.finetune"]:
        raise SettingsError(
            "fecosr's safety rule compares finetuned models, but algorithm.finetune = false: "
            "clients would train alone for nothing, and ship without the check. Fix: "
            "algorithm.finetune = true, or algorithm.fecosr.safety-rule = false."
        )
    if values["model.personal-memory"] and values["algorithm.fecosr.finetune-mode"] == "all":
        raise SettingsError(
            "model.personal-memory with fecosr and algorithm.fecosr.finetune-mode = 'all': the "
            "private rows of users are trained with the adapter, which stays out then. Fix: "
            "algorithm.fecosr.finetune-mode = 'all+adapter'."
        )
    if values["run.warm-start"] and safety_rule:
        raise SettingsError(
            "run.warm-start with fecosr's safety rule: all that clients keep from a run is the "
            "model alone, which would go on from there while the shared one begins anew. Fix: "
            "run.warm-start = ''."
        )


def shipped_label(outcome: Sums) -> str:
    """Which of the two models a client ships; empty where the rule was not asked."""
    return {1.0: FEDERATED, 0.0: LOCAL}.get(outcome.get(SHIPPED, -1.0), "")


FECOSR = AlgorithmSpec(
    fecosr,
    FeCoSRSettings,
    items=ItemDemand("adapted", "finetunes a market adapter"),
    check_run=refuse_unfit,
    labels=Labels(outcome_column="ships", outcome=shipped_label),
)
