"""How nodes become members: asked once to register, admitted when they answer.

Nobody waits for one node: the registration message stays on its way while rounds go on, and a late
node takes part from the round after its answer. A refused node is asked again after a while.
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
PATIENCE_SECONDS = 5.0  # how long a round is held up for a node that was just asked
RETRY_SECONDS = 60.0  # until a node that was refused is asked again


def gather_nodes(
    grid: Grid,
    registration: Mapping[str, Any],
    *,
    timeout: float,
    min_nodes: int = 0,
    settle: float = SETTLE_SECONDS,
) -> Roster:
    """Waits until the federation is complete. Raises FederationError when it does not become so.

    Complete are all parts of a common data set; else, when no new node came for ``settle`` seconds,
    ``min_nodes`` nodes (0: whoever came, in a federation that is not made of parts).
    """
    deadline = time.monotonic() + timeout
    roster, changed = Roster(()), time.monotonic()
    while True:
        before = len(roster.members) + len(roster.refused)
        roster = admit_nodes(grid, roster, registration, patience=POLL_SECONDS, ttl=timeout)
        if len(roster.members) + len(roster.refused) != before:
            changed = time.monotonic()
        settled = time.monotonic() - changed > settle
        if _complete(roster) or (settled and _enough(roster, min_nodes)):
            check_same_data(roster)
            return roster
        if time.monotonic() > deadline or _hopeless(roster, min_nodes, settled):
            raise FederationError(_incomplete(roster, min_nodes, timeout))
        time.sleep(POLL_SECONDS)


def admit_nodes(
    grid: Grid,
    roster: Roster,
    registration: Mapping[str, Any],
    *,
    patience: float = PATIENCE_SECONDS,
    ttl: float = RETRY_SECONDS,
) -> Roster:
    """Asks new nodes to register, waits ``patience`` seconds for them, admits who has answered.

    A node that came back under another id takes its old place.
    """
    connected, now = list(grid.get_node_ids()), time.monotonic()
    refused = {n: r for n, r in roster.refused.items() if n in connected}
    refused = {n: r for n, r in refused.items() if now - r.when < RETRY_SECONDS}
    awaiting = {message: n for message, n in roster.awaiting.items() if n in connected}
    known = {member.node for member in roster.members} | {*refused, *awaiting.values()}
    new = [node for node in connected if node not in known]
    awaiting |= push(grid, REGISTER, {node: request(registration) for node in new}, ttl=ttl)
    answers, problems = pull(grid, awaiting, patience if new else 0.0)
    answered = {*answers, *problems}
    left = {message: node for message, node in awaiting.items() if node not in answered}
    members, rejected = _admit(roster, answers)
    reasons = {node: Refusal(reason, now) for node, reason in {**problems, **rejected}.items()}
    return Roster(members, left, {**refused, **reasons, **_replaced(roster, members, now)})


def newly_refused(before: Roster, after: Roster) -> dict[int | str, str]:
    """Reasons by node of the refusals that ``after`` has and ``before`` had not."""
    return {
        node: refusal.reason
        for node, refusal in after.refused.items()
        if before.refused.get(node) != refusal
    }


def _admit(
    roster: Roster, answers: Mapping[int, RecordDict]
) -> tuple[tuple[Member, ...], dict[int, str]]:
    """The members with those who answered, and why others of these cannot be members."""
    members = {member.place: member for member in roster.members}
    rejected: dict[int, str] = {}
    places: set[tuple[int, str]] = set()
    for node, content in answers.items():
        try:
            member = read_registration(node, content)
        except ProtocolError as error:
            rejected[node] = str(error)
            continue
        if member.place in places:
            rejected[node] = f"another node calls itself {member.label} too"
            continue
        places.add(member.place)
        members[member.place] = member
    return tuple(members[place] for place in sorted(members)), rejected


def _replaced(roster: Roster, members: tuple[Member, ...], now: float) -> dict[int, Refusal]:
    """Nodes whose place another one has taken: itself under a new id, or one named alike."""
    at = {member.place: member.node for member in members}
    return {
        old.node: Refusal(f"node {at[old.place]} calls itself {old.label} now", now, replaced=True)
        for old in roster.members
        if at[old.place] != old.node
    }


def _expected(roster: Roster) -> int:
    """Parts of the common data set; 0 where each node brings its own."""
    return max((member.partitions for member in roster.members), default=0)


def _complete(roster: Roster) -> bool:
    expected = _expected(roster)
    return expected > 0 and {m.partition for m in roster.members} >= set(range(expected))


def _enough(roster: Roster, min_nodes: int) -> bool:
    if min_nodes:
        return len(roster.members) >= min_nodes
    return bool(roster.members) and _expected(roster) == 0


def _hopeless(roster: Roster, min_nodes: int, settled: bool) -> bool:
    """Whether nodes were refused, and all have answered or no new one has come for a while."""
    expected = max(_expected(roster), min_nodes)
    refused = [refusal for refusal in roster.refused.values() if not refusal.replaced]
    answered = len(roster.members) + len(refused)
    return bool(refused) and ((expected > 0 and answered >= expected) or settled)


def _incomplete(roster: Roster, min_nodes: int, timeout: float) -> str:
    expected = min_nodes or _expected(roster)
    reasons = [f"node {node}: {refusal.reason}" for node, refusal in roster.refused.items()]
    reasons += [f"node {node}: did not answer yet" for node in roster.awaiting.values()]
    wanted = f"{len(roster.members)} of {expected or 'an unknown number of'} nodes"
    lines = "".join(f"\n  {reason}" for reason in reasons)
    return (
        f"{wanted} are ready (federation.start-timeout is {timeout:g} s).{lines}"
        f"\nFix: start the nodes that are missing, or fix what they report."
    )
