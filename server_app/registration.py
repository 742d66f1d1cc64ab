"""What a node says of itself when it registers, and whether the nodes fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.protocol import CLIENT, FACTS, METRICS, ProtocolError, numbers
from server_app.roster import ClientFacts, FederationError, Member, Roster


def read_registration(node: int, content: RecordDict) -> Member:
    """The member that a node registers as. Raises ProtocolError on any other answer."""
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
        raise ProtocolError(f"a registration without {error}") from None


def check_same_data(roster: Roster) -> None:
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
