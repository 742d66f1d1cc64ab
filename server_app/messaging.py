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


def request(config: Mapping[str, Any], arrays: ArrayRecord | None = None) -> RecordDict:
    """The content of a message: its config, and the shared array where there is one."""
    content = RecordDict({CONFIG: ConfigRecord(dict(config))})
    if arrays is not None:
        content[SHARED] = arrays
    return content


def exchange(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, timeout: float
) -> Exchange:
    """Sends each node its content; all is over ``timeout`` seconds after the call."""
    messages = [Message(content, node, kind) for node, content in contents.items()]
    return match_replies(messages, send_and_receive(grid, messages, timeout), timeout)


def send_and_receive(grid: Grid, messages: Sequence[Message], timeout: float) -> list[Message]:
    """Sends ``messages``; the replies that came when ``timeout`` seconds are over, also errors.

    The messages are over then as well: a late node does not get what is not waited for any
    more, and works on the next message instead of staying behind for ever.
    """
    deadline = time.monotonic() + timeout
    for message in messages:
        message.metadata.ttl = timeout + GRACE
    if messages:
        grid.push_messages(messages)
    return list(_replies(grid, {m.metadata.message_id for m in messages}, deadline))


def match_replies(
    messages: Iterable[Message], replies: Iterable[Message], timeout: float
) -> Exchange:
    """What each node answered to its message, or why it did not within ``timeout`` seconds."""
    sent = {message.metadata.message_id: message.metadata.dst_node_id for message in messages}
    answers, problems = _by_node(sent, replies)
    patience = float(f"{timeout:.2g}")  # what is left of a round is an odd number
    silent = set(sent.values()) - set(answers) - set(problems)
    return Exchange(
        answers, {**problems, **dict.fromkeys(silent, f"no answer within {patience:g} s")}
    )


def push(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, ttl: float
) -> dict[str, int]:
    """Sends each node its content; nodes by the id of the message they got."""
    messages = [Message(content, node, kind, ttl=ttl) for node, content in contents.items()]
    if messages:
        grid.push_messages(messages)
    return {m.metadata.message_id: node for m, node in zip(messages, contents, strict=True)}


def pull(
    grid: Grid, sent: Mapping[str, int], timeout: float
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """(contents, errors) by node of the answers to ``sent`` that come within ``timeout`` seconds.

    Looks once even without any time; nodes that did not answer are in neither.
    """
    return _by_node(sent, _replies(grid, set(sent), time.monotonic() + timeout))


def count_bytes(messages: Iterable[Message]) -> int:
    """Array and number bytes of what the messages hold; an error holds nothing."""
    return sum(
        _size(record)
        for message in messages
        if message.has_content()
        for record in message.content.values()
    )


def _by_node(
    sent: Mapping[str, int], replies: Iterable[Message]
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    answers: dict[int, RecordDict] = {}
    problems: dict[int, str] = {}
    for reply in replies:
        node = sent[reply.metadata.reply_to_message_id]
        if reply.has_error():
            problems[node] = f"error: {_first_line(reply.error.reason)}"
        else:
            answers[node] = reply.content
    return answers, problems


def _replies(grid: Grid, waiting: set[str], deadline: float) -> Iterable[Message]:
    pause = FIRST_POLL
    while waiting:
        for reply in grid.pull_messages(sorted(waiting)):
            if reply.metadata.reply_to_message_id in waiting:
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
        if not waiting or time.monotonic() >= deadline:
            return
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(LONGEST_POLL, pause * 1.5)


def _size(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    # Flower's own count refuses the empty text that a setting may be.
    return record.count_bytes() if isinstance(record, ArrayRecord) else len(record.deflate())


def _first_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return lines[0][:400] if lines else "no reason was given"
