"""Who is there: the clients of each node, learnt from the nodes' first answer (a hello).

The server samples clients, by name, and then asks each node for its own. Which node hosts a client,
and under which random id Flower knows the node, changes nothing in who is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from flwr.app import RecordDict

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.protocol import CLIENT, FACTS, METRICS, ProtocolError, numbers


class FederationError(RuntimeError):
    """Nodes that cannot form a federation; says which and why."""


@dataclass(frozen=True)
class ClientFacts:
    """``covered``: held-out items that occur in the client's own training data, by split."""

    users: int
    interactions: int
    covered: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Member:
    """A node that answered. ``partitions`` is 0 for a node with data of its own."""

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
    def place(self) -> tuple[int, str]:
        """What stays when the node comes back under another id."""
        return self.partition, self.name

    @property
    def label(self) -> int | str:
        """What people call it."""
        return self.name or self.partition


@dataclass(frozen=True)
class Refusal:
    """``when``: on the monotonic clock, in seconds. ``replaced``: a later node has its place."""

    reason: str
    when: float
    replaced: bool = False


@dataclass(frozen=True)
class Roster:
    """All nodes that answered, in the order of their partitions and names.

    ``greeted``: nodes by the message that asked them and that they have not answered yet.
    ``refused``: why a node cannot take part, and when it said so.
    """

    members: tuple[Member, ...]
    greeted: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[int, Refusal] = field(default_factory=dict)

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """Names of all clients, sorted."""
        return _names(self.members)

    @cached_property
    def facts(self) -> dict[str, ClientFacts]:
        return {name: facts for member in self.members for name, facts in member.clients.items()}

    @cached_property
    def users(self) -> int:
        return _users(self.members)

    @property
    def split_digest(self) -> str:
        """The split of the run; nodes with data of their own have one each, joined by +."""
        return "+".join(sorted({member.split_digest for member in self.members}))

    def coverage(self, split: str) -> float:
        """Share of the held-out items that their own client has ever seen."""
        covered = sum(facts.covered[split] for facts in self.facts.values())
        return covered / self.users if self.users else 0.0


@lru_cache(maxsize=2)
def _names(members: tuple[Member, ...]) -> tuple[str, ...]:
    """Kept from round to round: the roster is made anew each time, its members are not."""
    return tuple(sorted(name for member in members for name in member.clients))


@lru_cache(maxsize=2)
def _users(members: tuple[Member, ...]) -> int:
    return sum(facts.users for member in members for facts in member.clients.values())


def read_hello(node: int, content: RecordDict) -> Member:
    """A node's first answer. Raises ProtocolError when it is not one."""
    try:
        facts: Mapping[str, Any] = content.config_records[FACTS]
        metrics = content.metric_records[METRICS]
        names = list(facts["clients"])
        columns = [
            numbers(metrics, CLIENT + column, len(names))
            for column in ("users", "interactions", *(f"{split}/covered" for split in SPLITS))
        ]
        return Member(
            node=node,
            partition=facts["partition"],
            partitions=facts["partitions"],
            name=facts["name"],
            clients={
                name: ClientFacts(
                    int(users), int(size), dict(zip(SPLITS, map(int, covered), strict=True))
                )
                for name, users, size, *covered in zip(names, *columns, strict=True)
            },
            split_digest=facts["split-digest"],
            items_digest=facts["items-digest"],
            num_items=facts["num-items"],
            description=facts["describe"],
            item_ids=tuple(facts["item-ids"]),
            vectors=facts["vectors"],
        )
    except KeyError as error:
        raise ProtocolError(f"a hello without {error}") from None


def check(roster: Roster) -> None:
    """Raises FederationError when the nodes do not split the same data in the same way."""
    _check_digests(roster)
    twice = [name for name, count in Counter(roster.clients).items() if count > 1]
    if twice:
        raise FederationError(
            f"{', '.join(twice[:5])} live on more than one node. Fix: give each node data of its "
            f"own with clients of its own, or partition-id and num-partitions that fit."
        )
    if not roster.clients:
        raise FederationError("no node hosts a client. Fix: check partition-id and num-partitions.")


def _check_digests(roster: Roster) -> None:
    parts = [member for member in roster.members if member.partitions]
    for name in ("split_digest", "items_digest") if parts else ():
        found = {getattr(member, name): member.label for member in parts}
        if len(found) > 1:
            listed = ", ".join(f"node {node}: {value[:12]}" for value, node in found.items())
            raise FederationError(
                f"the nodes do not read the same data ({name.replace('_', ' ')} {listed}). "
                f"Fix: give every node the same data set, or each its own with data-path."
            )
    catalogues = {member.item_ids for member in roster.members}
    if len(catalogues) > 1:
        raise FederationError(
            "the nodes have different items, but model.items = 'shared' and 'dual' average one "
            "table. Fix: give every node the same catalogue, or choose model.items = 'private' or "
            "'semantic'."
        )
    vectors = {member.vectors: member.label for member in roster.members}
    if len(vectors) > 1:
        listed = ", ".join(f"node {node}: {value[:12]}" for value, node in vectors.items())
        raise FederationError(
            f"the nodes make different item vectors ({listed}), so one projection would mean "
            f"different things. Fix: give every node the same texts of items and the same file in "
            f"model.item-vectors."
        )
