"""Federated averaging (McMahan et al., 2017), of whatever the partition shares.

With private item tables this is the personalized-layers form (FedPer, Arivazhagan et al. 2019):
the encoder is averaged, each client keeps its own table.
"""

from __future__ import annotations

from functools import partial

from pfsr_core.algorithms.server_step import ServerStep, average
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import Broadcast, ClientUpdate, FederatedAlgorithm, ServerState
from pfsr_core.local_training import ExtraLoss, LocalTraining, LossSum, Task, stream_seed, train
from pfsr_core.losses import proximal
from pfsr_core.params import Params, distance, shapes_of


def fed_avg(
    task: Task,
    training: LocalTraining,
    *,
    step: ServerStep = average,
    proximal_strength: float = 0.0,
) -> FederatedAlgorithm:
    """Averages the shared names, weighted by training interactions; ``step`` uses the mean."""

    def local(broadcast: Broadcast, state: Params, data: ClientDataset) -> tuple[Params, LossSum]:
        stream = stream_seed(training.seed, "client", data.client, broadcast.round)
        extra: ExtraLoss | None = None
        if proximal_strength:
            extra = partial(proximal, anchor=broadcast.params, strength=proximal_strength)
        whole = {**broadcast.params, **state}
        config = training.in_round(broadcast.round)
        return train(task, config, whole, data, stream=stream, extra_loss=extra)

    def client_update(broadcast: Broadcast, state: Params, data: ClientDataset) -> ClientUpdate:
        whole, losses = local(broadcast, state, data)
        shared, private = task.partition.split(whole)
        return ClientUpdate(
            params=shared,
            weight=float(data.num_interactions),
            metrics=loss_metrics(losses),
            state=private,
            norm=float(distance(shared, broadcast.params)),
        )

    def finetune(broadcast: Broadcast, state: Params, data: ClientDataset) -> Params:
        return local(broadcast, state, data)[0]

    return FederatedAlgorithm(
        init=lambda: ServerState(task.init_shared()),
        init_client=task.init_private,
        client_update=client_update,
        server_update=lambda server, reply: step(server, reply.params),
        personalize=lambda shared, state: {**shared, **state},
        reply_shapes=shapes_of(task.init_shared()),
        finetune=finetune,
    )


def loss_metrics(losses: LossSum) -> dict[str, float]:
    return {"train-loss": losses.total, "train-targets": losses.count}
