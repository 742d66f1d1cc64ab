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


def local_only(task: Task, training: LocalTraining) -> FederatedAlgorithm:
    """The reference for what federation is worth: the same model, budget and seeds."""

    def init_client(data: ClientDataset) -> Params:
        return {**task.partition.init_shared(), **task.partition.init_private(data)}

    def updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        jobs = [
            Job(state, data, stream_seed(training.seed, "client", data.client, broadcast.round))
            for state, data in zip(states, datasets, strict=True)
        ]
        trained = train_clients(task, training.in_round(broadcast.round), jobs)
        return [
            ClientUpdate({}, float(data.num_interactions), loss_metrics(losses), params, 0.0)
            for (params, losses), data in zip(trained, datasets, strict=True)
        ]

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        return [update.state for update in updates(broadcast, states, datasets)]

    return FederatedAlgorithm(
        client=ClientSide(init_client, updates, reply_shapes={}, finetunes=finetunes),
        server=ServerSide(
            init=lambda: ServerState({}),
            update=lambda server, _reply: replace(server, round=server.round + 1),
        ),
        personalization=Personalization(lambda _shared, state: state),
    )


LOCAL_ONLY = AlgorithmSpec(lambda task, training, _settings, _averaging: local_only(task, training))
