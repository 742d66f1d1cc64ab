"""Registered nodes and their clients.

The server samples clients, by name, and then asks each node for its own. Which node hosts a client,
and under which random id Flower knows the node, changes nothing in who is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache


class FederationError(RuntimeError):
    """Nodes that cannot form a federation; says which and why."""


@dataclass(frozen=True)
class ClientFacts:
    """What a client's node registered about it.

    Attributes:
        users: how many it has.
        interactions: how many it trains on.
        covered: held-out items that occur in its own training data, by split.
    """

    users: int
    interactions: int
    covered: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Member:
    """A node that registered. ``partitions`` is 0 for a node with data of its own."""

    node: int
    partition: int
    partitions: int
    name: str
    clients: Mapping[str, ClientFacts]
    split_digest: str
    items_digest: str
    num_items: int
    description: str
    item_ids: tuple[str, ...]
    vectors: str

    @property
    def stable_id(self) -> tuple[int, str]:
        """Partition and name, which stay when the node comes back under another id."""
        return self.partition, self.name

    @property
    def label(self) -> int | str:
        """The name of the node in messages, or its partition."""
        return self.name or self.partition


@dataclass(frozen=True)
class Refusal:
    """Why a node cannot take part.

    Attributes:
        reason: in words.
        when: it was refused, on the monotonic clock, in seconds.
        replaced: whether a later node has taken its place.
    """

    reason: str
    when: float
    replaced: bool = False


@dataclass(frozen=True)
class Roster:
    """All nodes that registered, in the order of their partitions and names.

    Attributes:
        members: who takes part.
        awaiting: nodes that have not registered yet, by the message that asked them to.
        refused: why a node cannot take part, and since when.
    """

    members: tuple[Member, ...]
    awaiting: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[int, Refusal] = field(default_factory=dict)

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """Names of all clients, sorted."""
        return _names(self.members)

    @cached_property
    def facts(self) -> dict[str, ClientFacts]:
        """What is known about each client, by name."""
        return {
            client_name: client_facts
            for member in self.members
            for client_name, client_facts in member.clients.items()
        }

    @cached_property
    def users(self) -> int:
        """Users of all clients."""
        return _users(self.members)

    @property
    def split_digest(self) -> str:
        """The split of the run; nodes with data of their own have one each, joined by +."""
        return "+".join(sorted({member.split_digest for member in self.members}))

    def coverage(self, split_name: str) -> float:
        """Share of the held-out items that their own client has ever seen."""
        num_covered = sum(client_facts.covered[split_name] for client_facts in self.facts.values())
        return num_covered / self.users if self.users else 0.0


@lru_cache(maxsize=2)
def _names(members: tuple[Member, ...]) -> tuple[str, ...]:
    """Kept from round to round: the roster is made anew each time, its members are not."""
    return tuple(sorted(client_name for member in members for client_name in member.clients))


@lru_cache(maxsize=2)
def _users(members: tuple[Member, ...]) -> int:
    return sum(client_facts.users for member in members for client_facts in member.clients.values())
