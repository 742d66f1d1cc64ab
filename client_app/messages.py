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

LIMITS = "limits"  # asks what the answer to a message may hold; the answer's metrics say it


def nothing() -> Flat:
    return np.zeros(0, np.float32)


class Limits(NamedTuple):
    """What the reply to one message may hold.

    ``values`` of the shared array, and the length of a list among the metrics: one number a client,
    too short to carry a table.
    """

    values: int
    longest_list: int


@dataclass(frozen=True)
class Request:
    """One message: its kind (:mod:`pfsr_core.federated.protocol`), whom it is for, what it says.

    ``run_config`` and ``node_config`` as Flower gives them. ``flat``: the shared array, empty
    where the kind has none.
    """

    kind: str
    run_config: Mapping[str, Any]
    node_config: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    flat: Flat = field(default_factory=nothing)


@dataclass(frozen=True)
class Answer:
    """What leaves the node: the shared array where something was trained, numbers, facts."""

    metrics: Metrics
    facts: Mapping[str, Any] = field(default_factory=dict)
    flat: Flat = field(default_factory=nothing)


class NodeFailureError(RuntimeError):
    """The node could not answer; carries the reason of the process that tried."""


def send_request(connection: Connection, request: Request) -> None:
    _send(connection, vars(request))


def receive_request(connection: Connection) -> Request:
    return Request(**_receive(connection))


def send_answer(connection: Connection, answer: Answer) -> None:
    _send(connection, vars(answer))


def send_failure(connection: Connection, reason: str) -> None:
    _send(connection, {"failure": reason, "flat": nothing()})


def receive_answer(connection: Connection) -> Answer:
    """Raises NodeFailureError with what :func:`send_failure` sent."""
    parts = _receive(connection)
    if "failure" in parts:
        raise NodeFailureError(parts["failure"])
    return Answer(**parts)


def _send(connection: Connection, parts: Mapping[str, Any]) -> None:
    """JSON, and the array as it lies in memory: nothing that could run code when it is read."""
    rest = {name: part for name, part in parts.items() if name != "flat"}
    connection.send_bytes(json.dumps(rest).encode())
    connection.send_bytes(np.ascontiguousarray(parts["flat"], np.float32).tobytes())


def _receive(connection: Connection) -> dict[str, Any]:
    rest = json.loads(connection.recv_bytes())
    return {**rest, "flat": np.frombuffer(connection.recv_bytes(), np.float32)}
