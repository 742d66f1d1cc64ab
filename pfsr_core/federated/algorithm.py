"""The one interface: a federated algorithm is a value, and a round is arithmetic on such values.

After FedJAX (Ro et al., 2021), cut at the network: ``client_updates`` runs where the data is,
``server_update`` where the means meet. Nothing here knows how the two are connected.

Two things go beyond a weighted mean of parameters and are part of the interface for that reason:
``Broadcast.signals`` (numbers the server sends with the shared parameters, such as PFSR's C_t) and
``Reply.norms`` (the clients' update norms, whose median is not a mean). ``reply_shapes`` lets an
algorithm send more than the shared names, such as the count of unmasked coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.params import Params, Shapes

Sums = dict[str, float]


@dataclass(frozen=True)
class Broadcast:
    """What the server sends: shared parameters, the 1-based round, and named numbers."""

    params: Params
    round: int
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerState:
    """What the server keeps between rounds. ``round`` counts the finished rounds."""

    params: Params
    round: int = 0
    signals: Mapping[str, float] = field(default_factory=dict)
    slots: Params = field(default_factory=dict)  # moments of a server optimiser

    def broadcast(self) -> Broadcast:
        return Broadcast(self.params, self.round + 1, self.signals)


@dataclass(frozen=True)
class ClientUpdate:
    """What one client's training ends with. ``state`` never leaves the node, the rest does."""

    params: Params
    weight: float
    metrics: Sums
    state: Params
    norm: float


@dataclass(frozen=True)
class Reply:
    """A weighted mean of one or more clients' ``params`` (float32), their weight, sums, norms."""

    params: Params
    weight: float
    metrics: Sums
    norms: tuple[float, ...]


ClientUpdates = Callable[[Broadcast, Sequence[Params], Sequence[ClientDataset]], list[ClientUpdate]]
Finetunes = Callable[[Broadcast, Sequence[Params], Sequence[ClientDataset]], list[Params]]
Personalize = Callable[[Params, Params], Params]
"""(shared parameters, a client's private state) -> a whole model"""
GLOBAL, WITH_PRIVATE, FULL = "global", "global+private", "full"
"""Names of views: what the federation learnt, the same with what a client adds to it, and the model
as a client's own training leaves it: once more from what the server has, with nothing sent."""


def keep_states(
    _broadcast: Broadcast, states: Sequence[Params], _datasets: Sequence[ClientDataset]
) -> list[Params]:
    """The default ``finetunes``: nothing changes."""
    return list(states)


def one_by_one(
    client_update: Callable[[Broadcast, Params, ClientDataset], ClientUpdate],
) -> ClientUpdates:
    """``client_updates`` of an algorithm that trains its clients one after the other."""

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        pairs = zip(states, datasets, strict=True)
        return [client_update(broadcast, state, data) for state, data in pairs]

    return client_updates


def nothing_to_tell(_state: Params) -> Sums:
    """The default ``outcome``."""
    return {}


@dataclass(frozen=True)
class FederatedAlgorithm:
    """A federated learning algorithm, whole.

    ``init()``                                  the server's first state
    ``init_client(data)``                       a client's first private state
    ``client_updates(broadcast, states, datasets)``
                                                one round on some clients, each apart from the
                                                others; writes none of its inputs
    ``server_update(server, reply)``            the next server state from the mean of the replies
    ``personalize(shared, state)``              the whole model that a client recommends with
    ``finetunes(broadcast, states, datasets)``  private states after the last round, nothing is sent
    ``reply_shapes``                            names and shapes of ``ClientUpdate.params``
    ``outcome(state)``                          sums and counts that leave the node after the last
                                                round, about how it ended for a client
    ``views``                                   further ways to recommend with a state, by name;
                                                reported beside ``personalize``, never selected by

    ``states_fit_any_round``                    whether the newest states belong to the shared
                                                parameters of earlier rounds as well
    It is given several clients at once because training small ones together is much cheaper.
    """

    init: Callable[[], ServerState]
    init_client: Callable[[ClientDataset], Params]
    client_updates: ClientUpdates
    server_update: Callable[[ServerState, Reply], ServerState]
    personalize: Personalize
    reply_shapes: Shapes
    finetunes: Finetunes = keep_states
    views: Mapping[str, Personalize] = field(default_factory=dict)
    outcome: Callable[[Params], Sums] = nothing_to_tell
    states_fit_any_round: bool = False

    @property
    def has_full_view(self) -> bool:
        """Whether FULL says more than the other views: a client can train once more."""
        return GLOBAL in self.views and self.finetunes is not keep_states

    def client_update(
        self, broadcast: Broadcast, state: Params, data: ClientDataset
    ) -> ClientUpdate:
        """One round on one client."""
        return self.client_updates(broadcast, [state], [data])[0]

    def finetune(self, broadcast: Broadcast, state: Params, data: ClientDataset) -> Params:
        """One client's private state after the last round."""
        return self.finetunes(broadcast, [state], [data])[0]
