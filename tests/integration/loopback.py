"""The two real apps in one process: a grid that calls the ClientApp where a SuperLink would send.

Everything that passes is turned into bytes and back, as on a wire. Flower gives no public way to
make messages outside its own processes, so the one private import of the tests is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from client_app.app import app as client_app
from pfsr_core.assembly.settings import Settings, flat_settings
from server_app.run import run_federation
from server_app.run_log import RunLog

Tamper = Callable[[int, Message, Message], Message | None]
"""(partition, request, reply) -> the reply that the server gets, or None for silence."""

SERVER, RUN = 1, 1


def honest(_partition: int, _request: Message, reply: Message) -> Message | None:
    return reply


@dataclass
class LoopbackGrid:
    """Nodes with ``configs``; node ids are unlike the partitions, and not in their order."""

    run_config: Mapping[str, Any]
    configs: Sequence[Mapping[str, Any]]
    tamper: Tamper = honest
    connected: Callable[[int], bool] = lambda _partition: True
    before: Callable[[int, Message], None] = lambda _partition, _message: None
    wire: list[tuple[int, str, bytes]] = field(default_factory=list)
    replies: dict[str, Message] = field(default_factory=dict)
    numbers: Any = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        be_the_server()
        self.ids = {900 - 7 * p: p for p in range(len(self.configs))}

    def get_node_ids(self) -> list[int]:
        return [node for node, partition in self.ids.items() if self.connected(partition)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        sent = []
        for message in messages:
            number = f"message-{next(self.numbers)}"
            message.metadata.__dict__["_message_id"] = number
            sent.append(number)
            reply = self._deliver(message)
            if reply is not None:
                self.replies[number] = reply
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.replies.pop(number) for number in message_ids if number in self.replies]

    def _deliver(self, message: Message) -> Message | None:
        partition = self.ids[message.metadata.dst_node_id]
        self.before(partition, message)
        request = Message(over_the_wire(message)[0], metadata=message.metadata)
        context = Context(
            RUN,
            message.metadata.dst_node_id,
            dict(self.configs[partition]),
            RecordDict(),
            dict(self.run_config),
        )
        try:
            reply = client_app(request, context)
        except Exception as error:
            reply = Message(Error(code=1, reason=f"{type(error)}:<'{error}'>"), reply_to=message)
        tampered = self.tamper(partition, request, reply)
        if tampered is None or not tampered.has_content():
            return tampered
        content, data = over_the_wire(tampered)
        self.wire.append((partition, message.metadata.message_type, data))
        tampered.content = content
        return tampered


def be_the_server() -> None:
    """Lets this process make messages, as Flower does for the process of a ServerApp."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, SERVER


def over_the_wire(message: Message) -> tuple[RecordDict, bytes]:
    """The content after serialization, and all bytes that it was."""
    objects = get_all_nested_objects(message.content)
    contents = {name: part.deflate() for name, part in objects.items()}
    copy = inflate_object_from_contents(message.content.object_id, dict(contents))
    assert isinstance(copy, RecordDict)
    return copy, b"".join(contents.values())


def partitions(nodes: int, state: Path, **config: Any) -> list[dict[str, Any]]:
    """Node configs as the simulation gives them."""
    return [
        {"partition-id": p, "num-partitions": nodes, "state-dir": str(state), **config}
        for p in range(nodes)
    ]


def run_loopback(
    settings: Settings, directory: Path, nodes: int = 1, **grid_options: Any
) -> tuple[RunLog, LoopbackGrid]:
    """A whole run of both apps; states of the nodes under ``directory``/state."""
    configs = partitions(nodes, directory / "state")
    grid = LoopbackGrid(flat_settings(settings), configs, **grid_options)
    return run_federation(grid, settings), grid
