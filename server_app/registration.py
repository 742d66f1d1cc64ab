"""Reads the registration of each node, and checks that the nodes fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import RecordDict

from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated.protocol import CLIENT, FACTS, METRICS, ProtocolError, numbers
from server_app.roster import ClientFacts, FederationError, Member, Roster


def read_registration(node_id: int, content: RecordDict) -> Member:
    """The member that a node registers as. Raises ProtocolError on any other answer."""
    try:
        node_facts: Mapping[str, Any] = content.config_records[FACTS]
        node_metrics = content.metric_records[METRICS]
        client_names = list(node_facts["clients"])
        client_columns = [
            numbers(node_metrics, CLIENT + column_name, len(client_names))
            for column_name in ("users", "interactions", *(f"{split}/covered" for split in SPLITS))
        ]
        return Member(
            node=node_id,
            partition=node_facts["partition"],
            partitions=node_facts["partitions"],
            name=node_facts["name"],
            clients={
                client_name: ClientFacts(
                    int(num_users),
                    int(num_interactions),
                    dict(zip(SPLITS, map(int, covered_items), strict=True)),
                )
                for client_name, num_users, num_interactions, *covered_items in zip(
                    client_names, *client_columns, strict=True
                )
            },
            split_digest=node_facts["split-digest"],
            items_digest=node_facts["items-digest"],
            num_items=node_facts["num-items"],
            description=node_facts["describe"],
            item_ids=tuple(node_facts["item-ids"]),
            vectors=node_facts["vectors"],
        )
    except KeyError as error:
        raise ProtocolError(f"a registration without {error}") from None


def check_same_data(roster: Roster) -> None:
    """Raises FederationError when the nodes do not split the same data in the same way."""
    _check_digests(roster)
    repeated_clients = [
        client_name for client_name, num_nodes in Counter(roster.clients).items() if num_nodes > 1
    ]
    if repeated_clients:
        raise FederationError(
            f"{', '.join(repeated_clients[:5])} are hosted by more than one node. Fix: "
            "give each node data of its own with clients of its own, or partition-id and "
            "num-partitions that fit."
        )
    if not roster.clients:
        raise FederationError("no node hosts a client. Fix: check partition-id and num-partitions.")


def _check_digests(roster: Roster) -> None:
    sharing_members = [member for member in roster.members if member.partitions]
    for digest_field in ("split_digest", "items_digest") if sharing_members else ():
        listed_digests = _differing_digests(sharing_members, digest_field)
        if listed_digests:
            raise FederationError(
                f"the nodes do not read the same data ({digest_field.replace('_', ' ')} "
                f"{listed_digests}). Fix: give every node the same data set, or each its own "
                f"with data-path."
            )
    item_catalogues = {member.item_ids for member in roster.members}
    if len(item_catalogues) > 1:
        raise FederationError(
            "the nodes have different items, but model.items = 'shared' and 'dual' average one "
            "table. Fix: give every node the same catalogue, or choose model.items = 'private' or "
            "'semantic'."
        )
    listed_digests = _differing_digests(roster.members, "vectors")
    if listed_digests:
        raise FederationError(
            f"the nodes make different item vectors ({listed_digests}), so one projection would "
            f"mean different things. Fix: give every node the same texts of items and the same "
            f"file in model.item-vectors."
        )


def _differing_digests(members: Sequence[Member], digest_field: str) -> str:
    """A node for each value of the field, as a list; empty where all have the same."""
    label_by_digest = {getattr(member, digest_field): member.label for member in members}
    if len(label_by_digest) < 2:
        return ""
    return ", ".join(
        f"node {node_label}: {digest[:12]}" for digest, node_label in label_by_digest.items()
    )
