"""Who is there: the clients of each node, learnt from the nodes' first answer.

The server samples clients, by name, and then asks each node for its own. Which node hosts a client,
and under which random id Flower knows the node, changes nothing in who is asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from pfsr_core.protocol import CLIENT, FACTS, HELLO, METRICS, SPLITS, ProtocolError, numbers
from server_app.exchange import exchange, request

SETTLE_SECONDS = 10.0  # a federation of unknown size is complete when nobody came for this long
POLL_SECONDS = 0.25


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
    clients: Mapping[str, ClientFacts]
    split_digest: str
    items_digest: str
    num_items: int
    description: str
    item_ids: tuple[str, ...]


@dataclass(frozen=True)
class Roster:
    """All nodes that answered, in the order of their partitions."""

    members: tuple[Member, ...]

    @cached_property
    def clients(self) -> tuple[str, ...]:
        """Names of all clients, sorted."""
        return tuple(sorted(name for member in self.members for name in member.clients))

    @cached_property
    def facts(self) -> dict[str, ClientFacts]:
        return {name: facts for member in self.members for name, facts in member.clients.items()}

    @property
    def users(self) -> int:
        return sum(facts.users for facts in self.facts.values())

    @property
    def split_digest(self) -> str:
        """The split of the run; nodes with data of their own have one each, joined by +."""
        return "+".join(sorted({member.split_digest for member in self.members}))

    def coverage(self, split: str) -> float:
        """Share of the held-out items that their own client has ever seen."""
        covered = sum(facts.covered[split] for facts in self.facts.values())
        return covered / self.users if self.users else 0.0


def gather(
    grid: Grid, hello: Mapping[str, Any], *, timeout: float, settle: float = SETTLE_SECONDS
) -> Roster:
    """Waits until the federation is complete. Raises FederationError when it does not become so."""
    deadline = time.monotonic() + timeout
    roster, refused, changed = Roster(()), dict[int, str](), time.monotonic()
    while True:
        before = len(roster.members) + len(refused)
        roster, new = join(grid, roster, hello, timeout=timeout, skip=refused)
        refused |= new
        if len(roster.members) + len(refused) != before:
            changed = time.monotonic()
        if _complete(roster) or (roster.members and _settled(roster, changed, settle)):
            check(roster)
            return roster
        if time.monotonic() > deadline or _hopeless(roster, refused, changed, settle):
            raise FederationError(_incomplete(roster, refused, timeout))
        time.sleep(POLL_SECONDS)


def join(
    grid: Grid,
    roster: Roster,
    hello: Mapping[str, Any],
    *,
    timeout: float,
    skip: Collection[int] = (),
) -> tuple[Roster, dict[int, str]]:
    """The roster with the nodes that are new, and why others of them cannot take part.

    A node that came back under another id takes its old place.
    """
    known = {member.node for member in roster.members} | set(skip)
    new = [node for node in grid.get_node_ids() if node not in known]
    if not new:
        return roster, {}
    result = exchange(grid, HELLO, {node: request(hello) for node in new}, timeout=timeout)
    refused = dict(result.problems)
    members = {member.partition: member for member in roster.members}
    for node, content in result.answers.items():
        try:
            member = read_hello(node, content)
        except ProtocolError as error:
            refused[node] = str(error)
        else:
            members[member.partition] = member
    ordered = tuple(members[partition] for partition in sorted(members))
    return replace(roster, members=ordered), refused


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
        found = {getattr(member, name): member.partition for member in parts}
        if len(found) > 1:
            listed = ", ".join(f"node {node}: {value[:12]}" for value, node in found.items())
            raise FederationError(
                f"the nodes do not read the same data ({name.replace('_', ' ')} {listed}). "
                f"Fix: give every node the same data set, or each its own with data-path."
            )
    catalogues = {member.item_ids for member in roster.members}
    if len(catalogues) > 1:
        raise FederationError(
            "the nodes have different items, but model.items = 'shared' averages one table. "
            "Fix: give every node the same catalogue, or choose model.items = 'private'."
        )


def _complete(roster: Roster) -> bool:
    partitions = {member.partition for member in roster.members}
    expected = max((member.partitions for member in roster.members), default=0)
    return expected > 0 and partitions >= set(range(expected))


def _settled(roster: Roster, changed: float, settle: float) -> bool:
    unknown = all(member.partitions == 0 for member in roster.members)
    return unknown and time.monotonic() - changed > settle


def _hopeless(roster: Roster, refused: Mapping[int, str], changed: float, settle: float) -> bool:
    """Nodes refused, and nobody new has come for a while."""
    expected = max((member.partitions for member in roster.members), default=0)
    all_heard = expected > 0 and len(roster.members) + len(refused) >= expected
    return bool(refused) and (all_heard or time.monotonic() - changed > settle)


def _incomplete(roster: Roster, refused: Mapping[int, str], timeout: float) -> str:
    expected = max((member.partitions for member in roster.members), default=0)
    reasons = "".join(f"\n  node {node}: {reason}" for node, reason in refused.items())
    wanted = f"{len(roster.members)} of {expected or 'an unknown number of'} nodes"
    return (
        f"{wanted} are ready (federation.start-timeout is {timeout:g} s).{reasons}"
        f"\nFix: start the nodes that are missing, or mend what they report."
    )
