"""How nodes become members: asked once to register, admitted when they answer.

The run waits for no single node: the registration message stays valid while rounds go on, and a
late node takes part from the round after its answer. A refused node is asked again after a while.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from pfsr_core.federated.protocol import REGISTER, ProtocolError
from server_app.messaging import pull, push, request
from server_app.registration import check_same_data, read_registration
from server_app.roster import FederationError, Member, Refusal, Roster

SETTLE_SECONDS = 10.0  # a federation of unknown size is complete when no node came for this long
POLL_SECONDS = 0.25
PATIENCE_SECONDS = 5.0  # how long a round waits for a node that was just asked
RETRY_SECONDS = 60.0  # until a node that was refused is asked again


def gather_nodes(
    grid: Grid,
    registration_config: Mapping[str, Any],
    *,
    start_timeout: float,
    min_nodes: int = 0,
    settle_seconds: float = SETTLE_SECONDS,
) -> Roster:
    """Waits until the federation is complete.

    A federation over a common data set is complete with all of its parts. Any other is, once no new
    node came for a while, with the number of nodes that is asked for.

    Args:
        grid: The connection to the nodes.
        registration_config: What a node is asked when it registers.
        start_timeout: Seconds to wait at most.
        min_nodes: Nodes to wait for; 0 for those that came, where they are not parts of one set.
        settle_seconds: How long no new node must have come.

    Raises:
        FederationError: The federation did not become complete; says why.
    """
    deadline = time.monotonic() + start_timeout
    roster, last_change = Roster(()), time.monotonic()
    while True:
        count_before = len(roster.members) + len(roster.refused)
        roster = admit_nodes(
            grid, roster, registration_config, patience_seconds=POLL_SECONDS, ttl=start_timeout
        )
        if len(roster.members) + len(roster.refused) != count_before:
            last_change = time.monotonic()
        is_settled = time.monotonic() - last_change > settle_seconds
        if _complete(roster) or (is_settled and _enough(roster, min_nodes)):
            check_same_data(roster)
            return roster
        if time.monotonic() > deadline or _hopeless(roster, min_nodes, is_settled):
            raise FederationError(_incomplete(roster, min_nodes, start_timeout))
        time.sleep(POLL_SECONDS)


def admit_nodes(
    grid: Grid,
    roster: Roster,
    registration_config: Mapping[str, Any],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    ttl: float = RETRY_SECONDS,
) -> Roster:
    """Asks new nodes to register, and admits those that have answered.

    A node that came back under another id replaces its former entry.

    Args:
        grid: The connection to the nodes.
        roster: The nodes that are known so far.
        registration_config: What a node is asked when it registers.
        patience_seconds: How long to wait for nodes that were just asked.
        ttl: Seconds that the registration message stays valid.
    """
    connected_nodes, now = list(grid.get_node_ids()), time.monotonic()
    still_refused = {
        node_id: refusal
        for node_id, refusal in roster.refused.items()
        if node_id in connected_nodes and now - refusal.when < RETRY_SECONDS
    }
    awaiting_nodes = {
        message_id: n for message_id, n in roster.awaiting.items() if n in connected_nodes
    }
    known_nodes = {member.node for member in roster.members} | {
        *still_refused,
        *awaiting_nodes.values(),
    }
    new_nodes = [node for node in connected_nodes if node not in known_nodes]
    awaiting_nodes |= push(
        grid, REGISTER, {node: request(registration_config) for node in new_nodes}, ttl=ttl
    )
    node_answers, node_errors = pull(grid, awaiting_nodes, patience_seconds if new_nodes else 0.0)
    answered_nodes = {*node_answers, *node_errors}
    still_awaiting = {
        message_id: node
        for message_id, node in awaiting_nodes.items()
        if node not in answered_nodes
    }
    admitted_members, rejected_reasons = _admit(roster, node_answers)
    new_refusals = {
        node: Refusal(reason, now) for node, reason in {**node_errors, **rejected_reasons}.items()
    }
    return Roster(
        admitted_members,
        still_awaiting,
        {**still_refused, **new_refusals, **_replaced(roster, admitted_members, now)},
    )


def newly_refused(previous_roster: Roster, current_roster: Roster) -> dict[int | str, str]:
    """Reasons by node of the refusals in ``current_roster`` that are new or changed."""
    return {
        node_id: refusal.reason
        for node_id, refusal in current_roster.refused.items()
        if previous_roster.refused.get(node_id) != refusal
    }


def _admit(
    roster: Roster, node_answers: Mapping[int, RecordDict]
) -> tuple[tuple[Member, ...], dict[int, str]]:
    """The members with those who answered, and why others of these cannot be members."""
    members_by_id = {member.stable_id: member for member in roster.members}
    rejected_reasons: dict[int, str] = {}
    taken_ids: set[tuple[int, str]] = set()
    for node_id, content in node_answers.items():
        try:
            member = read_registration(node_id, content)
        except ProtocolError as error:
            rejected_reasons[node_id] = str(error)
            continue
        if member.stable_id in taken_ids:
            rejected_reasons[node_id] = f"another node calls itself {member.label} too"
            continue
        taken_ids.add(member.stable_id)
        members_by_id[member.stable_id] = member
    return tuple(members_by_id[stable_id] for stable_id in sorted(members_by_id)), rejected_reasons


def _replaced(roster: Roster, members: tuple[Member, ...], now: float) -> dict[int, Refusal]:
    """Refusals of nodes replaced by another: themselves under a new id, or one named alike."""
    node_ids = {member.stable_id: member.node for member in members}
    return {
        old_member.node: Refusal(
            f"node {node_ids[old_member.stable_id]} calls itself {old_member.label} now",
            now,
            replaced=True,
        )
        for old_member in roster.members
        if node_ids[old_member.stable_id] != old_member.node
    }


def _expected(roster: Roster) -> int:
    """Parts of the common data set; 0 where each node brings its own."""
    return max((member.partitions for member in roster.members), default=0)


def _complete(roster: Roster) -> bool:
    expected_nodes = _expected(roster)
    return expected_nodes > 0 and {member.partition for member in roster.members} >= set(
        range(expected_nodes)
    )


def _enough(roster: Roster, min_nodes: int) -> bool:
    if min_nodes:
        return len(roster.members) >= min_nodes
    return bool(roster.members) and _expected(roster) == 0


def _hopeless(roster: Roster, min_nodes: int, is_settled: bool) -> bool:
    """Whether nodes were refused, and all have answered or no new one has come for a while."""
    expected_nodes = max(_expected(roster), min_nodes)
    active_refusals = [refusal for refusal in roster.refused.values() if not refusal.replaced]
    num_answered = len(roster.members) + len(active_refusals)
    return bool(active_refusals) and (
        (expected_nodes > 0 and num_answered >= expected_nodes) or is_settled
    )


def _incomplete(roster: Roster, min_nodes: int, start_timeout: float) -> str:
    expected_nodes = min_nodes or _expected(roster)
    reason_lines = [
        f"node {node_id}: {refusal.reason}" for node_id, refusal in roster.refused.items()
    ]
    reason_lines += [f"node {node_id}: did not answer yet" for node_id in roster.awaiting.values()]
    readiness = f"{len(roster.members)} of {expected_nodes or 'an unknown number of'} nodes"
    reason_text = "".join(f"\n  {reason}" for reason in reason_lines)
    return (
        f"{readiness} are ready (federation.start-timeout is {start_timeout:g} s).{reason_text}"
        f"\nFix: start the nodes that are missing, or fix what they report."
    )
