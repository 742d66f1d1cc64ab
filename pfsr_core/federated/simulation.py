"""The plain loop: every client in one process. The reference that the networked runners equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.aggregation import ReplySum, as_reply, merge_replies
from pfsr_core.federated.algorithm import (
    Broadcast,
    FederatedAlgorithm,
    Reply,
    ServerState,
)
from pfsr_core.federated.sampling import sample_clients
from pfsr_core.params import Params

States = dict[str, Params]
Load = Callable[[Sequence[ClientDataset]], Mapping[str, Params]]
Save = Callable[[States], None]

VALUES_AT_ONCE = 2**23  # of shared and private parameters of the clients in memory together


@dataclass(frozen=True)
class RoundReport:
    """What happened in a round: the server's state after it, every client's, and the reply."""

    server: ServerState
    states: Mapping[str, Params]
    asked: tuple[str, ...]
    reply: Reply


def hosted_by(clients: Sequence[str], node: int, nodes: int) -> tuple[str, ...]:
    """The clients on node ``node`` of ``nodes``: every ``nodes``-th one."""
    return tuple(clients[node::nodes])


def state_of(
    algorithm: FederatedAlgorithm, states: Mapping[str, Params], data: ClientDataset
) -> Params:
    """A client's private state, its first one where it has none yet."""
    known = states.get(data.client)
    return algorithm.client.init(data) if known is None else known


def portions(
    algorithm: FederatedAlgorithm, shared: Params, datasets: Sequence[ClientDataset]
) -> Iterator[Sequence[ClientDataset]]:
    """The clients, those of similar size together, in portions that bound the memory.

    What a portion needs, a few models a client, does not depend on how many clients there are.
    """
    if not datasets:
        return
    first = algorithm.client.init(datasets[0])
    size = sum(tensor.numel() for tensor in (*shared.values(), *first.values()))
    count = max(1, VALUES_AT_ONCE // max(1, size))
    ordered = sorted(datasets, key=lambda data: data.num_interactions)
    for start in range(0, len(ordered), count):
        yield ordered[start : start + count]


def finetune_clients(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    states: Mapping[str, Params],
    datasets: Sequence[ClientDataset],
) -> States:
    """Every client's private state after its last training, which is not sent."""
    new: States = {}
    for portion in portions(algorithm, broadcast.params, datasets):
        before = [state_of(algorithm, states, data) for data in portion]
        after = algorithm.client.finetunes(broadcast, before, portion)
        new |= zip((data.client for data in portion), after, strict=True)
    return new


def update_clients(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    datasets: Sequence[ClientDataset],
    load: Load,
    save: Save,
) -> Reply:
    """Trains a node's clients, a portion after the other: their merged reply.

    ``load`` gives the states that some clients have, ``save`` takes their new ones. A client
    without a state starts with ``init_client``.
    """
    total = ReplySum()
    for portion in portions(algorithm, broadcast.params, datasets):
        states = load(portion)
        before = [state_of(algorithm, states, data) for data in portion]
        updates = algorithm.client.updates(broadcast, before, portion)
        for update in updates:
            total.add(as_reply(update))
        save({data.client: one.state for data, one in zip(portion, updates, strict=True)})
    return total.mean()


def node_update(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    states: Mapping[str, Params],
    datasets: Sequence[ClientDataset],
) -> tuple[Reply, States]:
    """:func:`update_clients` with all states in memory: the reply and the new states."""
    new: States = {}
    reply = update_clients(algorithm, broadcast, datasets, lambda _portion: states, new.update)
    return reply, new


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
    names = tuple(by_name)
    server = algorithm.server.init()
    states: States = {}
    for round_ in range(1, rounds + 1):
        asked = sample_clients(names, participation, seed, round_)
        chosen, replies = set(asked), []
        for node in range(nodes):
            hosted = [name for name in hosted_by(names, node, nodes) if name in chosen]
            if not hosted:
                continue
            here = [by_name[name] for name in hosted]
            reply, new = node_update(algorithm, server.broadcast(), states, here)
            states = {**states, **new}
            replies.append(reply)
        merged = merge_replies(replies)
        server = algorithm.server.update(server, merged)
        on_round(RoundReport(server, states, asked, merged))
    return server, states
