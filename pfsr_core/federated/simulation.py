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


def hosted_by(client_names: Sequence[str], node_index: int, num_nodes: int) -> tuple[str, ...]:
    """The clients on node ``node_index`` of ``num_nodes``: every ``num_nodes``-th one."""
    return tuple(client_names[node_index::num_nodes])


def state_of(
    algorithm: FederatedAlgorithm, client_states: Mapping[str, Params], client_data: ClientDataset
) -> Params:
    """A client's private state, its first one where it has none yet."""
    known_state = client_states.get(client_data.client)
    return algorithm.client.init(client_data) if known_state is None else known_state


def portions(
    algorithm: FederatedAlgorithm, shared_params: Params, client_datasets: Sequence[ClientDataset]
) -> Iterator[Sequence[ClientDataset]]:
    """The clients, those of similar size together, in portions that bound the memory.

    What a portion needs, a few models a client, does not depend on how many clients there are.
    """
    if not client_datasets:
        return
    first_state = algorithm.client.init(client_datasets[0])
    values_per_client = sum(
        tensor.numel() for tensor in (*shared_params.values(), *first_state.values())
    )
    portion_size = max(1, VALUES_AT_ONCE // max(1, values_per_client))
    sorted_datasets = sorted(client_datasets, key=lambda client_data: client_data.num_interactions)
    for portion_start in range(0, len(sorted_datasets), portion_size):
        yield sorted_datasets[portion_start : portion_start + portion_size]


def finetune_clients(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    client_states: Mapping[str, Params],
    client_datasets: Sequence[ClientDataset],
) -> States:
    """Trains every client once more, of which nothing is sent.

    Args:
        algorithm: The algorithm of the run.
        broadcast: What the server has after its last round.
        client_states: Private states by client; a client without one starts with its first.
        client_datasets: The clients to train.

    Returns:
        The private states after this training, by client.
    """
    new_states: States = {}
    for portion in portions(algorithm, broadcast.params, client_datasets):
        start_states = [state_of(algorithm, client_states, client_data) for client_data in portion]
        final_states = algorithm.client.finetunes(broadcast, start_states, portion)
        new_states |= zip(
            (client_data.client for client_data in portion), final_states, strict=True
        )
    return new_states


def update_clients(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    client_datasets: Sequence[ClientDataset],
    load_states: Load,
    save_states: Save,
) -> Reply:
    """Trains a node's clients, a portion after the other.

    Args:
        algorithm: The algorithm of the run.
        broadcast: What the server sent.
        client_datasets: The clients to train.
        load_states: Gives the private states of a portion by client; a client without one starts
            with ``algorithm.client.init``.
        save_states: Takes the new states of a portion.

    Returns:
        The merged reply of all clients.
    """
    reply_sum = ReplySum()
    for portion in portions(algorithm, broadcast.params, client_datasets):
        known_states = load_states(portion)
        start_states = [state_of(algorithm, known_states, client_data) for client_data in portion]
        client_updates = algorithm.client.updates(broadcast, start_states, portion)
        for update in client_updates:
            reply_sum.add(as_reply(update))
        save_states(
            {
                client_data.client: client_update.state
                for client_data, client_update in zip(portion, client_updates, strict=True)
            }
        )
    return reply_sum.mean()


def node_update(
    algorithm: FederatedAlgorithm,
    broadcast: Broadcast,
    client_states: Mapping[str, Params],
    client_datasets: Sequence[ClientDataset],
) -> tuple[Reply, States]:
    """:func:`update_clients` with all states in memory: the reply and the new states."""
    new_states: States = {}
    reply = update_clients(
        algorithm, broadcast, client_datasets, lambda _portion: client_states, new_states.update
    )
    return reply, new_states


def run(
    algorithm: FederatedAlgorithm,
    client_datasets: Sequence[ClientDataset],
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
    by_name = {client_data.client: client_data for client_data in client_datasets}
    client_names = tuple(by_name)
    server_state = algorithm.server.init()
    client_states: States = {}
    for round_ in range(1, rounds + 1):
        asked_clients = sample_clients(client_names, participation, seed, round_)
        asked_set, node_replies = set(asked_clients), []
        for node in range(nodes):
            hosted_names = [
                name for name in hosted_by(client_names, node, nodes) if name in asked_set
            ]
            if not hosted_names:
                continue
            node_datasets = [by_name[name] for name in hosted_names]
            node_reply, new_states = node_update(
                algorithm, server_state.broadcast(), client_states, node_datasets
            )
            client_states = {**client_states, **new_states}
            node_replies.append(node_reply)
        merged_reply = merge_replies(node_replies)
        server_state = algorithm.server.update(server_state, merged_reply)
        on_round(RoundReport(server_state, client_states, asked_clients, merged_reply))
    return server_state, client_states
