"""The plain loop: every client in one process. The reference that the networked runners equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import (
    Broadcast,
    FederatedAlgorithm,
    Reply,
    ServerState,
    as_reply,
    merge_replies,
)
from pfsr_core.local_training import stream_seed
from pfsr_core.params import Params

States = dict[str, Params]


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round: the server's state after it, every client's, and the reply."""

    server: ServerState
    states: Mapping[str, Params]
    asked: tuple[str, ...]
    reply: Reply


def sample_clients(clients: Sequence[str], share: float, seed: int, round_: int) -> tuple[str, ...]:
    """``share`` of the clients, at least one, without replacement; in the given order.

    Depends on the names, the seed and the round only: never on nodes or their ids.
    """
    count = max(1, round(share * len(clients)))
    if count >= len(clients):
        return tuple(clients)
    rng = np.random.default_rng(stream_seed(seed, "sampling", round_))
    chosen = np.sort(rng.permutation(len(clients))[:count])
    return tuple(clients[i] for i in chosen)


def hosted_by(clients: Sequence[str], node: int, nodes: int) -> tuple[str, ...]:
    """The clients on node ``node`` of ``nodes``: every ``nodes``-th one."""
    return tuple(clients[node::nodes])


def state_of(
    algorithm: FederatedAlgorithm, states: Mapping[str, Params], data: ClientDataset
) -> Params:
    """A client's private state, its first one where it has none yet."""
    known = states.get(data.client)
    return algorithm.init_client(data) if known is None else known


def finetune_clients(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    states: Mapping[str, Params],
    datasets: Sequence[ClientDataset],
) -> States:
    """Every client's private state after its last training, which is not sent."""
    return {
        data.client: algorithm.finetune(broadcast, state_of(algorithm, states, data), data)
        for data in datasets
    }


def node_update(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    states: Mapping[str, Params],
    datasets: Sequence[ClientDataset],
) -> tuple[Reply, States]:
    """Trains a node's clients one after the other: their merged reply and their new states.

    A client without a state starts with ``init_client``.
    """
    replies, new = [], {}
    for data in datasets:
        update = algorithm.client_update(broadcast, state_of(algorithm, states, data), data)
        new[data.client] = update.state
        replies.append(as_reply(update))
    return merge_replies(replies), new


def run(
    algorithm: FederatedAlgorithm,
    datasets: Sequence[ClientDataset],
    *,
    rounds: int,
    seed: int,
    participation: float = 1.0,
    nodes: int = 1,
    on_round: Callable[[RoundReport], None] = lambda _report: None,
) -> tuple[ServerState, States]:
    """``rounds`` rounds; returns the last server state and the clients' private states.

    ``nodes`` groups the clients as that many nodes would: the sums are then taken in the same
    order as over a network, and equal it tensor for tensor.
    """
    by_name = {data.client: data for data in datasets}
    server = algorithm.init()
    states: States = {}
    for round_ in range(1, rounds + 1):
        asked = sample_clients(list(by_name), participation, seed, round_)
        replies = []
        for node in range(nodes):
            hosted = [name for name in hosted_by(list(by_name), node, nodes) if name in asked]
            if not hosted:
                continue
            here = [by_name[name] for name in hosted]
            reply, new = node_update(algorithm, server.broadcast(), states, here)
            states = {**states, **new}
            replies.append(reply)
        merged = merge_replies(replies)
        server = algorithm.server_update(server, merged)
        on_round(RoundReport(server, states, asked, merged))
    return server, states
