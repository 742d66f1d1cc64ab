"""Federated averaging (McMahan et al., 2017), of whatever the partition shares.

With private item tables this is the personalized-layers form (FedPer, Arivazhagan et al. 2019):
the encoder is averaged, each client keeps its own table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from pfsr_core.algorithms.server_optimizers import PLAIN_MEAN, Averaging
from pfsr_core.algorithms.spec import AlgorithmSpec
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    GLOBAL,
    WITH_PRIVATE,
    Broadcast,
    ClientSide,
    ClientUpdate,
    FederatedAlgorithm,
    Personalization,
    Personalize,
    ServerSide,
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
    averaging: Averaging = PLAIN_MEAN,
    *,
    proximal_strength: float = 0.0,
) -> FederatedAlgorithm:
    """Averages the shared names.

    Args:
        task: The model and the partition of its names.
        training: How a client trains.
        averaging: Weights of the clients, and what the server does with their mean.
        proximal_strength: Weight mu of FedProx's proximal term.
    """

    def proximal_term(params: Params, _context: object, anchor: Params) -> Tensor:
        return proximal(params, anchor, proximal_strength)

    def train_all(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Trained]:
        term = partial(proximal_term, anchor=broadcast.params)
        jobs = [
            Job(
                params={**broadcast.params, **state},
                data=data,
                stream=stream_seed(training.seed, "client", data.client, broadcast.round),
                extra_loss=ExtraLoss(term, {}) if proximal_strength else None,
            )
            for state, data in zip(states, datasets, strict=True)
        ]
        return train_clients(task, training.in_round(broadcast.round), jobs)

    def model(shared: Params, state: Params) -> Params:
        return {**shared, **state}

    def updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        trained = train_all(broadcast, states, datasets)
        return [
            update_of(task, broadcast, result, data, averaging.weight_power)
            for result, data in zip(trained, datasets, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        return [params for params, _ in train_all(broadcast, states, datasets)]

    return FederatedAlgorithm(
        client=ClientSide(
            init=task.partition.init_private,
            updates=updates,
            reply_shapes=shapes_of(task.partition.init_shared()),
            finetunes=finetunes,
            states_fit_any_round=not task.partition.private,
        ),
        server=ServerSide(
            init=lambda: ServerState(task.partition.init_shared()),
            update=lambda server, reply: averaging.step(server, reply.params),
        ),
        personalization=Personalization(model, item_variants(task, model)),
    )


def item_variants(task: Task, model: Personalize) -> Mapping[str, Personalize]:
    """The variants GLOBAL and WITH_PRIVATE, where clients add something to items or users.

    An adapter is left out of GLOBAL together with the rows of users; by itself it makes no variant.
    """
    if not task.partition.private & {RESIDUAL, USERS}:
        return {}
    added = task.partition.private & ADDED

    def without_added(shared: Params, state: Params) -> Params:
        params = model(shared, state)
        return {**params, **{name: torch.zeros_like(params[name]) for name in added}}

    return {GLOBAL: without_added, WITH_PRIVATE: model}


def update_of(
    task: Task,
    broadcast: Broadcast,
    trained: Trained,
    data: ClientDataset,
    weight_power: float,
) -> ClientUpdate:
    """The reply with the shared names of a trained model; its private ones are the state."""
    params, losses = trained
    shared, private = task.partition.split(params)
    return ClientUpdate(
        params=shared,
        weight=float(data.num_interactions) ** weight_power,
        metrics=loss_metrics(losses),
        state=private,
        norm=float(distance(shared, broadcast.params)),
    )


def loss_metrics(losses: LossSum) -> dict[str, float]:
    """The sums that every algorithm sends: of losses, and of the targets that they are over."""
    return {"train-loss": losses.total, "train-targets": losses.count}


FED_AVG = AlgorithmSpec(lambda task, training, _, averaging: fed_avg(task, training, averaging))
