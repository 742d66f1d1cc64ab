"""Local only: every client trains the whole model alone. Nothing is received, nothing is sent."""

from __future__ import annotations

from dataclasses import replace

from pfsr_core.algorithms.fed_avg import loss_metrics
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import Broadcast, ClientUpdate, FederatedAlgorithm, ServerState
from pfsr_core.local_training import LocalTraining, Task, stream_seed, train
from pfsr_core.params import Params


def local_only(task: Task, training: LocalTraining) -> FederatedAlgorithm:
    """The reference for what federation is worth: the same model, budget and seeds."""

    def init_client(data: ClientDataset) -> Params:
        return {**task.init_shared(), **task.init_private(data)}

    def client_update(broadcast: Broadcast, state: Params, data: ClientDataset) -> ClientUpdate:
        stream = stream_seed(training.seed, "client", data.client, broadcast.round)
        whole, losses = train(task, training.in_round(broadcast.round), state, data, stream=stream)
        return ClientUpdate({}, float(data.num_interactions), loss_metrics(losses), whole, 0.0)

    def finetune(broadcast: Broadcast, state: Params, data: ClientDataset) -> Params:
        return client_update(broadcast, state, data).state

    return FederatedAlgorithm(
        init=lambda: ServerState({}),
        init_client=init_client,
        client_update=client_update,
        server_update=lambda server, _reply: replace(server, round=server.round + 1),
        personalize=lambda _shared, state: state,
        reply_shapes={},
        finetune=finetune,
    )
