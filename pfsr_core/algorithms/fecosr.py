"""FeCoSR: federated training of markets with a safety rule for each (after arXiv 2604.13573).

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
        "parameters that are finetuned: adapter, the market adapter and private rows of users; "
        "all, all others; all+adapter, both",
        choices=("adapter", "all", "all+adapter"),
    )
    finetune_epochs: int = setting(
        10, "epochs of finetuning, of which the best by validation NDCG@10 is kept", low=1
    )
    finetune_step: float = setting(
        1.0, "factor on the learning rates of the first round that finetuning takes", low=1e-6
    )
    safety_rule: bool = setting(
        True,
        "also train every client alone, and use that model where its validation NDCG@10 is higher",
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
        held_by_mode = {
            "adapter": partition.shared,
            "all": partition.private,
            "all+adapter": frozenset(),
        }
        return held_by_mode[self.settings.finetune_mode]

    def pretrained(
        self,
        task: Task,
        initial_models: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
        round_: int,
    ) -> list[Trained]:
        """Whole models after a round of stage 1 with the targets of ``task``; adapters stay."""
        jobs = [
            self._job(
                initial_model,
                client_data,
                ("client", client_data.client, round_),
                self.task.partition.private,
            )
            for initial_model, client_data in zip(initial_models, client_datasets, strict=True)
        ]
        return train_clients(task, self.training.in_round(round_), jobs)

    def trained_alone(
        self, client_states: Sequence[Params], client_datasets: Sequence[ClientDataset], round_: int
    ) -> list[Params]:
        """What the states hold of the models alone, a round later."""
        shared_names, private_names = self.task.partition.shared, self.task.partition.private
        initial_models = [
            {**of_prefix(client_state, ALONE), **select(client_state, private_names)}
            for client_state in client_states
        ]
        trained_models = self.pretrained(self.hard, initial_models, client_datasets, round_)
        return [
            _after_round(
                client_state,
                Scored(
                    self.scored(merged_params, client_data).score,
                    select(merged_params, shared_names),
                ),
            )
            for client_state, (merged_params, _), client_data in zip(
                client_states, trained_models, client_datasets, strict=True
            )
        ]

    def finetuned(
        self, initial_models: Sequence[Params], client_datasets: Sequence[ClientDataset]
    ) -> list[Scored]:
        """Every client's best epoch of stage 2, the first of equals; epoch 0 is its start."""
        current_models = list(initial_models)
        best_models = list(map(self.scored, current_models, client_datasets))
        for epoch in range(1, self.settings.finetune_epochs + 1):
            current_models = self._epoch(current_models, client_datasets, epoch)
            model_pairs = zip(
                best_models, map(self.scored, current_models, client_datasets), strict=True
            )
            best_models = [
                new_model if new_model.score > best_model.score else best_model
                for best_model, new_model in model_pairs
            ]
        return best_models

    def scored(self, merged_params: Params, client_data: ClientDataset) -> Scored:
        """The model and its score on the client's validation items, 0 without users."""
        scorer = make_scorer(self.task, merged_params, client_data, self.training.max_length)
        ndcg_values = user_values([evaluate_client(scorer, client_data, "valid")], "ndcg@10")
        return Scored(
            torch.tensor([ndcg_values.mean() if len(ndcg_values) else 0.0]), merged_params
        )

    def _epoch(
        self, initial_models: Sequence[Params], client_datasets: Sequence[ClientDataset], epoch: int
    ) -> list[Params]:
        jobs = [
            self._job(
                initial_model, client_data, ("finetune", client_data.client, epoch), self.held
            )
            for initial_model, client_data in zip(initial_models, client_datasets, strict=True)
        ]
        scaled_training = self.training.scaled(self.settings.finetune_step)
        epoch_training = scaled_training.with_settings(local_epochs=1)
        return [
            merged_params for merged_params, _ in train_clients(self.hard, epoch_training, jobs)
        ]

    def _job(
        self,
        initial_model: Params,
        client_data: ClientDataset,
        stream_key: tuple[object, ...],
        held_names: frozenset[str],
    ) -> Job:
        frozen_masks = {
            tensor_name: torch.ones_like(initial_model[tensor_name], dtype=torch.bool)
            for tensor_name in held_names
        }
        job_seed = stream_seed(self.training.seed, *stream_key)
        return Job(initial_model, client_data, job_seed, frozen=frozen_masks)


def fecosr(
    task: Task,
    local_training: LocalTraining,
    settings: FeCoSRSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """FeCoSR over a task whose private part is an adapter that starts at zero."""
    stages, private_names = Stages(task, local_training, settings), task.partition.private
    base_algorithm = fed_avg(task, local_training, averaging)

    def init_client(client_data: ClientDataset) -> Params:
        alone_state = (
            with_prefix(task.partition.init_shared(), ALONE) if settings.safety_rule else {}
        )
        return {**task.partition.init_private(client_data), **alone_state}

    def updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        initial_models = [
            {**broadcast.params, **select(client_state, private_names)}
            for client_state in client_states
        ]
        trained_models = stages.pretrained(task, initial_models, client_datasets, broadcast.round)
        alone_states: Sequence[Params] = [{}] * len(client_states)
        if settings.safety_rule:
            alone_states = stages.trained_alone(client_states, client_datasets, broadcast.round)
        replies = [
            update_of(task, broadcast, trained_model, client_data, averaging.weight_power)
            for trained_model, client_data in zip(trained_models, client_datasets, strict=True)
        ]
        return [
            replace(reply, state={**reply.state, **alone_state})
            for reply, alone_state in zip(replies, alone_states, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Params]:
        adapter_states = [select(client_state, private_names) for client_state in client_states]
        federated_models = stages.finetuned(
            [{**broadcast.params, **adapter_state} for adapter_state in adapter_states],
            client_datasets,
        )
        final_states = [
            {**adapter_state, **with_prefix(federated_model.params, FEDERATED)}
            for adapter_state, federated_model in zip(adapter_states, federated_models, strict=True)
        ]
        if not settings.safety_rule:
            return final_states
        local_models = stages.finetuned(
            [_best_alone(client_state, private_names) for client_state in client_states],
            client_datasets,
        )
        return [
            {
                **client_state,
                **with_prefix(local_model.params, LOCAL),
                SHIPS: (federated_model.score > local_model.score).float(),
            }
            for client_state, federated_model, local_model in zip(
                final_states, federated_models, local_models, strict=True
            )
        ]

    variants = {
        FEDERATED: partial(_federated, private_names),
        LOCAL: partial(_local, private_names),
    }
    return replace(
        base_algorithm,
        client=replace(
            base_algorithm.client,
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


def shipped(client_state: Params) -> Sums:
    """Whether a finetuned client ships the federated result; nothing before the rule was asked."""
    return {SHIPPED: client_state[SHIPS].item()} if SHIPS in client_state else {}


def _shipped_model(federated: Personalize, local: Personalize) -> Personalize:
    """Before the end what stage 1 has reached, after it what is shipped."""

    def model(received_params: Params, client_state: Params) -> Params:
        ships_local = SHIPS in client_state and not client_state[SHIPS].item()
        return (local if ships_local else federated)(received_params, client_state)

    return model


def _federated(
    private_names: frozenset[str], received_params: Params, client_state: Params
) -> Params:
    return of_prefix(client_state, FEDERATED) or {
        **received_params,
        **select(client_state, private_names),
    }


def _local(private_names: frozenset[str], _received: Params, client_state: Params) -> Params:
    return of_prefix(client_state, LOCAL) or _best_alone(client_state, private_names)


def _best_alone(client_state: Params, private_names: frozenset[str]) -> Params:
    """The model alone at its best round, or at its start."""
    return {
        **(of_prefix(client_state, ALONE_BEST) or of_prefix(client_state, ALONE)),
        **select(client_state, private_names),
    }


def _after_round(client_state: Params, new_model: Scored) -> Params:
    """What a state holds of the model alone, whose shared names are ``new_model`` now."""
    best_params, best_score = of_prefix(client_state, ALONE_BEST), client_state.get(SCORE)
    if best_score is None or new_model.score > best_score:
        best_score, best_params = new_model
    return {
        **with_prefix(new_model.params, ALONE),
        **with_prefix(best_params, ALONE_BEST),
        SCORE: best_score,
    }


def refuse_unfit(setting_values: Mapping[str, Value]) -> None:
    """Refuses settings that contradict the two stages.

    Args:
        setting_values: All settings of the run, by dotted key.

    Raises:
        SettingsError: A setting does not fit; the message names the fix.
    """
    safety_rule = setting_values["algorithm.fecosr.safety-rule"]
    if safety_rule and not setting_values["algorithm.finetune"]:
        raise SettingsError(
            "fecosr's safety rule compares finetuned models, but algorithm.finetune = false: "
            "clients would train alone for nothing, and ship without the check. Fix: "
            "algorithm.finetune = true, or algorithm.fecosr.safety-rule = false."
        )
    if (
        setting_values["model.personal-memory"]
        and setting_values["algorithm.fecosr.finetune-mode"] == "all"
    ):
        raise SettingsError(
            "model.personal-memory with fecosr and algorithm.fecosr.finetune-mode = 'all': the "
            "private rows of users are trained with the adapter, which stays out then. Fix: "
            "algorithm.fecosr.finetune-mode = 'all+adapter'."
        )
    if setting_values["run.warm-start"] and safety_rule:
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
