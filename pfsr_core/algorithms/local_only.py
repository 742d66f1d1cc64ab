"""Local only: every client trains the whole model alone. Nothing is received, nothing is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pfsr_core.algorithms.fed_avg import loss_metrics
from pfsr_core.algorithms.spec import AlgorithmSpec
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientSide,
    ClientUpdate,
    FederatedAlgorithm,
    Personalization,
    ServerSide,
    ServerState,
)
from pfsr_core.params import Params
from pfsr_core.randomness import stream_seed
from pfsr_core.training.batched import train_clients
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.task import Task


def local_only(task: Task, local_training: LocalTraining) -> FederatedAlgorithm:
    """The reference for what federation is worth: the same model, budget and seeds."""

    def init_client(client_data: ClientDataset) -> Params:
        return {**task.partition.init_shared(), **task.partition.init_private(client_data)}

    def updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        jobs = [
            Job(
                client_state,
                client_data,
                stream_seed(local_training.seed, "client", client_data.client, broadcast.round),
            )
            for client_state, client_data in zip(client_states, client_datasets, strict=True)
        ]
        trained_models = train_clients(task, local_training.in_round(broadcast.round), jobs)
        return [
            ClientUpdate(
                {}, float(client_data.num_interactions), loss_metrics(loss_sum), merged_params, 0.0
            )
            for (merged_params, loss_sum), client_data in zip(
                trained_models, client_datasets, strict=True
            )
        ]

    def finetunes(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Params]:
        return [update.state for update in updates(broadcast, client_states, client_datasets)]

    return FederatedAlgorithm(
        client=ClientSide(init_client, updates, reply_shapes={}, finetunes=finetunes),
        server=ServerSide(
            init=lambda: ServerState({}),
            update=lambda server, _reply: replace(server, round=server.round + 1),
        ),
        personalization=Personalization(lambda _shared, state: state),
    )


LOCAL_ONLY = AlgorithmSpec(lambda task, training, _settings, _averaging: local_only(task, training))
