"""The interface of algorithms: a federated algorithm is a value, a round is arithmetic on values.

After FedJAX (Ro et al., 2021), cut at the network: :class:`ClientSide` runs where the data is,
:class:`ServerSide` where the replies meet. Nothing here knows how the two are connected.

Two things go beyond a weighted mean of parameters and are part of the interface for that reason:
``Broadcast.signals`` (numbers the server sends with the shared parameters, such as PFSR's C_t) and
``Reply.norms`` (the clients' update norms, whose median is not a mean). ``reply_shapes`` lets an
algorithm send more than the shared names, such as the count of unmasked coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
        """What the next round starts from."""
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
"""Names of variants: what the federation learnt, the same with what a client adds to it, and the
model after one further training of the client from the server's model, of which nothing is sent."""


def keep_states(
    _broadcast: Broadcast, client_states: Sequence[Params], _datasets: Sequence[ClientDataset]
) -> list[Params]:
    """The default ``finetunes``: nothing changes."""
    return list(client_states)


def one_by_one(
    client_update: Callable[[Broadcast, Params, ClientDataset], ClientUpdate],
) -> ClientUpdates:
    """``updates`` of an algorithm that trains its clients one after the other."""

    def client_updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        pairs = zip(client_states, client_datasets, strict=True)
        return [
            client_update(broadcast, client_state, client_data)
            for client_state, client_data in pairs
        ]

    return client_updates


def no_outcome(_state: Params) -> Sums:
    """The default ``outcome``: nothing is reported."""
    return {}


@dataclass(frozen=True)
class ClientSide:
    """What runs where the data is.

    Several clients are given at once because training small ones together is much cheaper; each
    must end as it would alone.

    Attributes:
        init: A client's first private state.
        updates: One round on some clients; writes none of its inputs.
        reply_shapes: Names and shapes of ``ClientUpdate.params``.
        finetunes: Private states after the last round, when nothing is sent.
        states_fit_any_round: Whether the newest private states belong to the shared parameters of
            earlier rounds as well, so that an earlier round may be served.
    """

    init: Callable[[ClientDataset], Params]
    updates: ClientUpdates
    reply_shapes: Shapes
    finetunes: Finetunes = keep_states
    states_fit_any_round: bool = False


@dataclass(frozen=True)
class ServerSide:
    """What runs where the replies meet.

    Attributes:
        init: The server's first state.
        update: The next state of the server from the mean of the replies.
    """

    init: Callable[[], ServerState]
    update: Callable[[ServerState, Reply], ServerState]


@dataclass(frozen=True)
class Personalization:
    """Which models a client ends with.

    Attributes:
        model: The whole model that a client recommends with.
        variants: Further models of a client, by name; evaluated beside ``model``, never selected
            by.
        outcome: Sums and counts about how a run ended for a client; they leave the node after the
            last round.
    """

    model: Personalize
    variants: Mapping[str, Personalize] = field(default_factory=dict)
    outcome: Callable[[Params], Sums] = no_outcome


@dataclass(frozen=True)
class FederatedAlgorithm:
    """A federated learning algorithm: a value of three parts, of which a variant replaces some."""

    client: ClientSide
    server: ServerSide
    personalization: Personalization

    @property
    def has_full_variant(self) -> bool:
        """Whether FULL differs from the other variants: clients can train once more."""
        trains_again = self.client.finetunes is not keep_states
        return GLOBAL in self.personalization.variants and trains_again

    def with_model(self, model: Personalize) -> FederatedAlgorithm:
        """The same algorithm, whose clients recommend with ``model`` alone."""
        return replace(self, personalization=Personalization(model))

    def client_update(
        self, broadcast: Broadcast, client_state: Params, client_data: ClientDataset
    ) -> ClientUpdate:
        """One round on one client."""
        return self.client.updates(broadcast, [client_state], [client_data])[0]

    def finetune(
        self, broadcast: Broadcast, client_state: Params, client_data: ClientDataset
    ) -> Params:
        """One client's private state after the last round."""
        return self.client.finetunes(broadcast, [client_state], [client_data])[0]
