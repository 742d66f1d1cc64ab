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
    local_training: LocalTraining,
    averaging: Averaging = PLAIN_MEAN,
    *,
    proximal_strength: float = 0.0,
) -> FederatedAlgorithm:
    """Averages the shared names.

    Args:
        task: The model and the partition of its names.
        local_training: How a client trains.
        averaging: Weights of the clients, and what the server does with their mean.
        proximal_strength: Weight mu of FedProx's proximal term.
    """

    def proximal_term(params: Params, _context: object, anchor_params: Params) -> Tensor:
        return proximal(params, anchor_params, proximal_strength)

    def train_all(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Trained]:
        loss_term = partial(proximal_term, anchor_params=broadcast.params)
        jobs = [
            Job(
                params={**broadcast.params, **client_state},
                data=client_data,
                stream=stream_seed(
                    local_training.seed, "client", client_data.client, broadcast.round
                ),
                extra_loss=ExtraLoss(loss_term, {}) if proximal_strength else None,
            )
            for client_state, client_data in zip(client_states, client_datasets, strict=True)
        ]
        return train_clients(task, local_training.in_round(broadcast.round), jobs)

    def model(shared_params: Params, client_state: Params) -> Params:
        return {**shared_params, **client_state}

    def updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        trained_models = train_all(broadcast, client_states, client_datasets)
        return [
            update_of(task, broadcast, trained_model, client_data, averaging.weight_power)
            for trained_model, client_data in zip(trained_models, client_datasets, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Params]:
        return [
            merged_params
            for merged_params, _ in train_all(broadcast, client_states, client_datasets)
        ]

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
    added_names = task.partition.private & ADDED

    def without_added(shared_params: Params, client_state: Params) -> Params:
        merged_params = model(shared_params, client_state)
        return {
            **merged_params,
            **{
                tensor_name: torch.zeros_like(merged_params[tensor_name])
                for tensor_name in added_names
            },
        }

    return {GLOBAL: without_added, WITH_PRIVATE: model}


def update_of(
    task: Task,
    broadcast: Broadcast,
    trained_model: Trained,
    client_data: ClientDataset,
    weight_power: float,
) -> ClientUpdate:
    """Makes the update of a client from its trained model.

    Args:
        task: The model and the partition of its names.
        broadcast: What the client started from.
        trained_model: Its merged parameters and losses.
        client_data: The client.
        weight_power: Power of its number of interactions that it weighs with.

    Returns:
        The shared tensors as the reply, the private ones as the client's state.
    """
    merged_params, loss_sum = trained_model
    shared_params, private_params = task.partition.split(merged_params)
    return ClientUpdate(
        params=shared_params,
        weight=float(client_data.num_interactions) ** weight_power,
        metrics=loss_metrics(loss_sum),
        state=private_params,
        norm=float(distance(shared_params, broadcast.params)),
    )


def loss_metrics(loss_sum: LossSum) -> dict[str, float]:
    """The sums that every algorithm sends: of losses, and of the targets that they are over."""
    return {"train-loss": loss_sum.total, "train-targets": loss_sum.count}


FED_AVG = AlgorithmSpec(lambda task, training, _, averaging: fed_avg(task, training, averaging))
