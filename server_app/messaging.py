"""One exchange with the nodes: messages out, answers in, each answer or its absence by node.

Replies are matched to nodes by the message they answer, not by their sender: the answer for a dead
node is written by the SuperLink in its own name.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from pfsr_core.federated.protocol import CONFIG, SHARED, Flat

FIRST_POLL, LONGEST_POLL = 0.02, 1.0  # seconds; the wait between two polls grows by half
GRACE = 1.0  # seconds that a message outlives the patience for its answer


@dataclass(frozen=True)
class Exchange:
    """Contents that came back, and why the others did not, by node id; array and number bytes."""

    answers: Mapping[int, RecordDict]
    problems: Mapping[int, str]
    bytes_down: int
    bytes_up: int


def request(config: Mapping[str, Any], flat: Flat | None = None) -> RecordDict:
    """The content of a message: its config, and the shared array where there is one."""
    content = RecordDict({CONFIG: ConfigRecord(dict(config))})
    if flat is not None:
        content[SHARED] = ArrayRecord({SHARED: Array(flat)})
    return content


def exchange(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, timeout: float, group: str = ""
) -> Exchange:
    """Sends each node its content; all is over ``timeout`` seconds after the call.

    So are the messages: a node that was late is not handed what nobody waits for any more, and
    works on the next message instead of staying behind for ever.
    """
    deadline = time.monotonic() + timeout
    sent = push(grid, kind, contents, ttl=timeout + GRACE, group=group)
    answers, problems = pull(grid, sent, deadline - time.monotonic())
    silent = set(contents) - set(answers) - set(problems)
    patience = float(f"{timeout:.2g}")  # what is left of a round is an odd number
    problems |= dict.fromkeys(silent, f"no answer within {patience:g} s")
    down, up = _bytes(contents.values()), _bytes(answers.values())
    return Exchange(answers, problems, down, up)


def push(
    grid: Grid, kind: str, contents: Mapping[int, RecordDict], *, ttl: float, group: str = ""
) -> dict[str, int]:
    """Sends each node its content; nodes by the id of the message they got."""
    messages = [
        Message(content, node, kind, ttl=ttl, group_id=group) for node, content in contents.items()
    ]
    if messages:
        grid.push_messages(messages)
    return {m.metadata.message_id: node for m, node in zip(messages, contents, strict=True)}


def pull(
    grid: Grid, sent: Mapping[str, int], timeout: float
) -> tuple[dict[int, RecordDict], dict[int, str]]:
    """(contents, errors) by node of the answers to ``sent`` that come within ``timeout`` seconds.

    Looks once even without any time; nodes that did not answer are in neither.
    """
    answers: dict[int, RecordDict] = {}
    problems: dict[int, str] = {}
    for reply in _replies(grid, set(sent), time.monotonic() + timeout):
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


def _bytes(contents: Iterable[RecordDict]) -> int:
    return sum(_size(record) for content in contents for record in content.values())


def _size(record: ArrayRecord | MetricRecord | ConfigRecord) -> int:
    # Flower's own count refuses the empty text that a setting may be.
    return record.count_bytes() if isinstance(record, ArrayRecord) else len(record.deflate())


def _first_line(reason: str | None) -> str:
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    return lines[0][:400] if lines else "no reason was given"
