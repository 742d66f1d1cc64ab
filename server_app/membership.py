"""How nodes become members: greeted once, admitted when they answer, asked again after a while.

Nobody waits for one node: a greeting stays on its way while rounds go on, and the node takes part
from the round after its answer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from flwr.serverapp import Grid

from pfsr_core.federated.protocol import HELLO, ProtocolError
from server_app.messaging import pull, push, request
from server_app.roster import FederationError, Member, Refusal, Roster, check, read_hello

SETTLE_SECONDS = 10.0  # a federation of unknown size is complete when nobody came for this long
POLL_SECONDS = 0.25
PATIENCE_SECONDS = 5.0  # how long a round is held up for a node that was just greeted
RETRY_SECONDS = 60.0  # until a node that was refused is greeted again


def gather(
    grid: Grid,
    hello: Mapping[str, Any],
    *,
    timeout: float,
    min_nodes: int = 0,
    settle: float = SETTLE_SECONDS,
) -> Roster:
    """Waits until the federation is complete. Raises FederationError when it does not become so.

    Complete are all parts of a common data set; else, when nobody new came for ``settle`` seconds,
    ``min_nodes`` nodes (0: whoever came, in a federation that is not made of parts).
    """
    deadline = time.monotonic() + timeout
    roster, changed = Roster(()), time.monotonic()
    while True:
        before = len(roster.members) + len(roster.refused)
        roster = join(grid, roster, hello, patience=POLL_SECONDS, ttl=timeout)
        if len(roster.members) + len(roster.refused) != before:
            changed = time.monotonic()
        settled = time.monotonic() - changed > settle
        if _complete(roster) or (settled and _enough(roster, min_nodes)):
            check(roster)
            return roster
        if time.monotonic() > deadline or _hopeless(roster, min_nodes, settled):
            raise FederationError(_incomplete(roster, min_nodes, timeout))
        time.sleep(POLL_SECONDS)


def join(
    grid: Grid,
    roster: Roster,
    hello: Mapping[str, Any],
    *,
    patience: float = PATIENCE_SECONDS,
    ttl: float = RETRY_SECONDS,
) -> Roster:
    """Greets nodes that are new, waits ``patience`` seconds for those, admits who has answered.

    A node that came back under another id takes its old place.
    """
    connected, now = list(grid.get_node_ids()), time.monotonic()
    refused = {n: r for n, r in roster.refused.items() if n in connected}
    refused = {n: r for n, r in refused.items() if now - r.when < RETRY_SECONDS}
    greeted = {message: n for message, n in roster.greeted.items() if n in connected}
    known = {member.node for member in roster.members} | {*refused, *greeted.values()}
    new = [node for node in connected if node not in known]
    greeted |= push(grid, HELLO, {node: request(hello) for node in new}, ttl=ttl)
    answers, problems = pull(grid, greeted, patience if new else 0.0)
    heard = {*answers, *problems}
    left = {message: node for message, node in greeted.items() if node not in heard}
    members, odd = _admit(roster, answers)
    reasons = {node: Refusal(reason, now) for node, reason in {**problems, **odd}.items()}
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
    odd: dict[int, str] = {}
    places: set[tuple[int, str]] = set()
    for node, content in answers.items():
        try:
            member = read_hello(node, content)
        except ProtocolError as error:
            odd[node] = str(error)
            continue
        if member.place in places:
            odd[node] = f"another node calls itself {member.label} too"
            continue
        places.add(member.place)
        members[member.place] = member
    return tuple(members[place] for place in sorted(members)), odd


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
    """Nodes refused, and everybody was heard or nobody new has come for a while."""
    expected = max(_expected(roster), min_nodes)
    refused = [refusal for refusal in roster.refused.values() if not refusal.replaced]
    heard = len(roster.members) + len(refused)
    return bool(refused) and ((expected > 0 and heard >= expected) or settled)


def _incomplete(roster: Roster, min_nodes: int, timeout: float) -> str:
    expected = min_nodes or _expected(roster)
    reasons = [f"node {node}: {refusal.reason}" for node, refusal in roster.refused.items()]
    reasons += [f"node {node}: did not answer yet" for node in roster.greeted.values()]
    wanted = f"{len(roster.members)} of {expected or 'an unknown number of'} nodes"
    lines = "".join(f"\n  {reason}" for reason in reasons)
    return (
        f"{wanted} are ready (federation.start-timeout is {timeout:g} s).{lines}"
        f"\nFix: start the nodes that are missing, or mend what they report."
    )
