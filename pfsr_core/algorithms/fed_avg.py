"""Federated averaging (McMahan et al., 2017), of whatever the partition shares.

With private item tables this is the personalized-layers form (FedPer, Arivazhagan et al. 2019):
the encoder is averaged, each client keeps its own table. ``server_learning_rate`` and
``server_momentum`` make the server step FedAvgM (Hsu et al. 2019); 1 and 0 are plain averaging.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import Broadcast, ClientUpdate, FederatedAlgorithm, Reply, ServerState
from pfsr_core.local_training import ExtraLoss, LocalTraining, LossSum, Task, stream_seed, train
from pfsr_core.losses import proximal
from pfsr_core.params import Params, distance, shapes_of


def fed_avg(
    task: Task,
    training: LocalTraining,
    *,
    server_learning_rate: float = 1.0,
    server_momentum: float = 0.0,
    proximal_strength: float = 0.0,
) -> FederatedAlgorithm:
    """Averages the shared names, weighted by training interactions."""

    def local(broadcast: Broadcast, state: Params, data: ClientDataset) -> tuple[Params, LossSum]:
        stream = stream_seed(training.seed, "client", data.client, broadcast.round)
        extra: ExtraLoss | None = None
        if proximal_strength:
            extra = partial(proximal, anchor=broadcast.params, strength=proximal_strength)
        whole = {**broadcast.params, **state}
        return train(task, training, whole, data, stream=stream, extra_loss=extra)

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
        server_update=momentum_update(server_learning_rate, server_momentum),
        personalize=lambda shared, state: {**shared, **state},
        reply_shapes=shapes_of(task.init_shared()),
        finetune=finetune,
    )


def momentum_update(
    learning_rate: float, momentum: float
) -> Callable[[ServerState, Reply], ServerState]:
    """``m <- momentum * m + (mean - theta)``, ``theta <- theta + learning_rate * m``."""

    def server_update(server: ServerState, reply: Reply) -> ServerState:
        if learning_rate == 1.0 and momentum == 0.0:
            return ServerState(reply.params, server.round + 1, server.signals, server.slots)
        slots, params = {}, {}
        for name, old in server.params.items():
            step = reply.params[name] - old
            if name in server.slots:
                step = momentum * server.slots[name] + step
            slots[name] = step
            params[name] = old + learning_rate * step
        return ServerState(params, server.round + 1, server.signals, slots)

    return server_update


def loss_metrics(losses: LossSum) -> dict[str, float]:
    return {"train-loss": losses.total, "train-targets": losses.count}
