"""Messages to the nodes and their replies, each reply matched to the message that it answers.

Not to its sender: the reply for a dead node is written by the SuperLink in its own name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from pfsr_core.federated.protocol import CONFIG, SHARED

FIRST_POLL, LONGEST_POLL = 0.02, 1.0  # seconds; the wait between two polls grows by half
GRACE = 1.0  # seconds that a message outlives the wait for its answer


@dataclass(frozen=True)
class Exchange:
    """Contents that came back, and why the others did not, by node id."""

    answers: Mapping[int, RecordDict]
    problems: Mapping[int, str]


def request(
    message_config: Mapping[str, Any], shared_arrays: ArrayRecord | None = None
) -> RecordDict:
    """The content of a message: its config, and the shared array where there is one."""
    content = RecordDict({CONFIG: ConfigRecord(dict(message_config))})
    if shared_arrays is not None:
        content[SHARED] = shared_arrays
    return content


def exchange(
    grid: Grid, kind: str, node_contents: Mapping[int, RecordDict], *, timeout_seconds: float
) -> Exchange:
    """Sends each node its content and waits at most ``timeout_seconds`` for the answers."""
    messages = [Message(content, node_id, kind) for node_id, content in node_contents.items()]
    return exchange_messages(grid, messages, timeout_seconds)


def exchange_messages(grid: Grid, messages: Sequence[Message], timeout_seconds: float) -> Exchange:
    """Sends messages, one a node, and waits at most ``timeout_seconds`` for the answers."""
    replies = send_and_receive(grid, messages, timeout_seconds)
    return match_replies(messages, replies, timeout_seconds)


def send_and_receive(
    grid: Grid, messages: Sequence[Message], timeout_seconds: float
) -> list[Message]:
    """Sends messages and returns the replies that come in time, errors among them.

    The messages expire with the wait: a late node does not get a message whose answer is not
    waited for any more, and works on the next one instead of falling ever further behind.

    Args:
        grid: The connection to the nodes.
        messages: The messages to send.
        timeout_seconds: How long to wait for replies.
    """
    deadline = time.monotonic() + timeout_seconds
    for message in messages:
        message.metadata.ttl = timeout_seconds + GRACE
    if messages:
        grid.push_messages(messages)
    return list(
        _replies(grid, {sent_message.metadata.message_id for sent_message in messages}, deadline)
    )


def match_replies(
    messages: Iterable[Message], replies: Iterable[Message], timeout_seconds: float
) -> Exchange:
    """What each node answered to its message, or why it did not within the timeout."""
    message_nodes = {
        message.metadata.message_id: message.metadata.dst_node_id for message in messages
    }
    node_answers, node_errors = _by_node(message_nodes, replies)
    rounded_seconds = float(f"{timeout_seconds:.2g}")  # what is left of a round is an odd number
    silent_nodes = set(message_nodes.values()) - set(node_answers) - set(node_errors)
    return Exchange(
        node_answers,
        {**node_errors, **dict.fromkeys(silent_nodes, f"no answer within {rounded_seconds:g} s")},
    )


def push(
    grid: Grid, kind: str, node_contents: Mapping[int, RecordDict], *, ttl: float
) -> dict[str, int]:
    """Sends each node its content and does not wait; returns node ids by message id."""
    messages = [
        Message(content, node_id, kind, ttl=ttl) for node_id, content in node_contents.items()
    ]
    if messages:
        grid.push_messages(messages)
    return {
        sent_message.metadata.message_id: node_id
        for sent_message, node_id in zip(messages, node_contents, strict=True)
    }


def pull(
    grid: Grid, message_nodes: Mapping[str, int], timeout_seconds: float
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """Polls for answers to the messages of :func:`push`, at least once.

    Args:
        grid: The connection to the nodes.
        message_nodes: Node ids by message id.
        timeout_seconds: How long to wait.

    Returns:
        Contents and errors by node id; nodes that did not answer are in neither.
    """
    return _by_node(
        message_nodes, _replies(grid, set(message_nodes), time.monotonic() + timeout_seconds)
    )


def count_bytes(messages: Iterable[Message]) -> int:
    """Array and number bytes of what the messages hold; an error holds nothing."""
    return sum(
        _size(record)
        for message in messages
        if message.has_content()
        for record in message.content.values()
    )


def _by_node(
    message_nodes: Mapping[str, int], replies: Iterable[Message]
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    node_answers: dict[int, RecordDict] = {}
    node_errors: dict[int, str] = {}
    for reply in replies:
        node_id = message_nodes[reply.metadata.reply_to_message_id]
        if reply.has_error():
            node_errors[node_id] = f"error: {_first_line(reply.error.reason)}"
        else:
            node_answers[node_id] = reply.content
    return node_answers, node_errors


def _replies(grid: Grid, waiting_ids: set[str], deadline: float) -> Iterable[Message]:
    poll_pause = FIRST_POLL
    while waiting_ids:
        for reply in grid.pull_messages(sorted(waiting_ids)):
            if reply.metadata.reply_to_message_id in waiting_ids:
                waiting_ids.discard(reply.metadata.reply_to_message_id)
                yield reply
        if not waiting_ids or time.monotonic() >= deadline:
            return
        time.sleep(min(poll_pause, max(0.0, deadline - time.monotonic())))
        poll_pause = min(LONGEST_POLL, poll_pause * 1.5)


def _size(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    # Flower's own count refuses the empty text that a setting may be.
    return record.count_bytes() if isinstance(record, ArrayRecord) else len(record.deflate())


def _first_line(reason: str | None) -> str:
    reason_lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return reason_lines[0][:400] if reason_lines else "no reason was given"
