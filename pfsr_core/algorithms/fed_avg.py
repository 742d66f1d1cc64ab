"""Federated averaging (McMahan et al., 2017), of whatever the partition shares.

With private item tables this is the personalized-layers form (FedPer, Arivazhagan et al. 2019):
the encoder is averaged, each client keeps its own table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pfsr_core.algorithms.server_optimizers import ServerStep, average
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    GLOBAL,
    WITH_PRIVATE,
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    Personalize,
    ServerState,
)
from pfsr_core.items.adapter import SCALE
from pfsr_core.models.compressors import USERS
from pfsr_core.models.parameter_names import BIAS, FACTORS, RESIDUAL
from pfsr_core.params import Params, distance, shapes_of
from pfsr_core.randomness import stream_seed
from pfsr_core.training.batched import Trained, train_clients
from pfsr_core.training.local import ExtraLoss, Job, LocalTraining, LossSum
from pfsr_core.training.losses import proximal
from pfsr_core.training.task import Task

ADDED = frozenset({RESIDUAL, USERS, SCALE, FACTORS, BIAS})
"""Private names that change nothing where they are zero."""


def fed_avg(
    task: Task,
    training: LocalTraining,
    *,
    step: ServerStep = average,
    proximal_strength: float = 0.0,
    weight_power: float = 1.0,
) -> FederatedAlgorithm:
    """Averages the shared names; ``step`` uses the mean.

    A client weighs its training interactions to the ``weight_power``.
    """

    def term(params: Params, _context: object, anchor: Params) -> Tensor:
        return proximal(params, anchor, proximal_strength)

    def local(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Trained]:
        pull = ExtraLoss(partial(term, anchor=broadcast.params), {}) if proximal_strength else None
        jobs = [
            Job(
                params={**broadcast.params, **state},
                data=data,
                stream=stream_seed(training.seed, "client", data.client, broadcast.round),
                extra_loss=pull,
            )
            for state, data in zip(states, datasets, strict=True)
        ]
        return train_clients(task, training.in_round(broadcast.round), jobs)

    def personalize(shared: Params, state: Params) -> Params:
        return {**shared, **state}

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        trained = local(broadcast, states, datasets)
        return [
            update_of(task, broadcast, *one, data, weight_power)
            for one, data in zip(trained, datasets, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        return [whole for whole, _ in local(broadcast, states, datasets)]

    return FederatedAlgorithm(
        init=lambda: ServerState(task.init_shared()),
        init_client=task.init_private,
        client_updates=client_updates,
        server_update=lambda server, reply: step(server, reply.params),
        personalize=personalize,
        reply_shapes=shapes_of(task.init_shared()),
        finetunes=finetunes,
        views=item_variants(task, personalize),
        states_fit_any_round=not task.partition.private,
    )


def item_variants(task: Task, personalize: Personalize) -> Mapping[str, Personalize]:
    """Where clients add something of items or users: the model without and with it.

    They are GLOBAL and WITH_PRIVATE. An adapter is left out with the rows of users; by itself it
    makes no views.
    """
    if not task.partition.private & {RESIDUAL, USERS}:
        return {}
    added = task.partition.private & ADDED

    def without(shared: Params, state: Params) -> Params:
        whole = personalize(shared, state)
        return {**whole, **{name: torch.zeros_like(whole[name]) for name in added}}

    return {GLOBAL: without, WITH_PRIVATE: personalize}


def update_of(  # noqa: PLR0913 - all of one training
    task: Task,
    broadcast: Broadcast,
    whole: Params,
    losses: LossSum,
    data: ClientDataset,
    weight_power: float,
) -> ClientUpdate:
    """The reply with the shared names of a trained model; its private ones are the state."""
    shared, private = task.partition.split(whole)
    return ClientUpdate(
        params=shared,
        weight=float(data.num_interactions) ** weight_power,
        metrics=loss_metrics(losses),
        state=private,
        norm=float(distance(shared, broadcast.params)),
    )


def loss_metrics(losses: LossSum) -> dict[str, float]:
    return {"train-loss": losses.total, "train-targets": losses.count}
