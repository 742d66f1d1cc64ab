"""What one message asks of a node and what the node answers, free of Flower and of torch.

The process that Flower starts for every message needs no more than this module: the work is done in
:mod:`client_app.dispatch`, there or in the node's resident worker.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from pfsr_core.federated.protocol import Flat, Metrics

LIMITS = "limits"  # kind of a request for the Limits of a reply; they are the answer's metrics


def empty_array() -> Flat:
    """The array of a message that has none."""
    return np.zeros(0, np.float32)


class Limits(NamedTuple):
    """What the reply to one message may hold.

    Attributes:
        values: of the shared array.
        longest_list: among the metrics: one number per client, too short to carry a table.
    """

    values: int
    longest_list: int


@dataclass(frozen=True)
class Request:
    """One message to a node.

    Attributes:
        kind: its kind (:mod:`pfsr_core.federated.protocol`), or LIMITS.
        run_config: as Flower gives it; chooses the node together with ``node_config``.
        node_config: as Flower gives it.
        config: the numbers and texts of the message.
        flat: the shared array, (values,) float32; empty where the kind has none.
    """

    kind: str
    run_config: Mapping[str, Any]
    node_config: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    flat: Flat = field(default_factory=empty_array)


@dataclass(frozen=True)
class Answer:
    """What leaves the node: the shared array where something was trained, numbers, facts."""

    metrics: Metrics
    facts: Mapping[str, Any] = field(default_factory=dict)
    flat: Flat = field(default_factory=empty_array)


class NodeFailureError(RuntimeError):
    """The node could not answer; carries the reason of the process that tried."""


def send_request(connection: Connection, request: Request) -> None:
    """Sends a request to the other end of the connection."""
    _send(connection, vars(request))


def receive_request(connection: Connection) -> Request:
    """Receives what :func:`send_request` sent."""
    return Request(**_receive(connection))


def send_answer(connection: Connection, answer: Answer) -> None:
    """Sends the answer to a request."""
    _send(connection, vars(answer))


def send_failure(connection: Connection, failure_reason: str) -> None:
    """Sends the reason for which a request failed."""
    _send(connection, {"failure": failure_reason, "flat": empty_array()})


def receive_answer(connection: Connection) -> Answer:
    """Receives what :func:`send_answer` sent.

    Raises:
        NodeFailureError: :func:`send_failure` was called instead; has its reason.
    """
    answer_parts = _receive(connection)
    if "failure" in answer_parts:
        raise NodeFailureError(answer_parts["failure"])
    return Answer(**answer_parts)


def _send(connection: Connection, message_parts: Mapping[str, Any]) -> None:
    """Sends JSON and the array's bytes: nothing that could run code when it is read."""
    json_parts = {
        part_name: part_value
        for part_name, part_value in message_parts.items()
        if part_name != "flat"
    }
    connection.send_bytes(json.dumps(json_parts).encode())
    connection.send_bytes(np.ascontiguousarray(message_parts["flat"], np.float32).tobytes())


def _receive(connection: Connection) -> dict[str, Any]:
    json_parts = json.loads(connection.recv_bytes())
    return {**json_parts, "flat": np.frombuffer(connection.recv_bytes(), np.float32)}
