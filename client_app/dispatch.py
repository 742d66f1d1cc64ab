"""A request answered by the node that it is for, in this process."""

from __future__ import annotations

import traceback

from client_app import handlers
from client_app.hosted_node import Node, NodeError, NodeHost
from client_app.messages import LIMITS, Answer, Limits, NodeFailureError, Request
from pfsr_core.federated.protocol import (
    BASELINES,
    FINISH,
    REGISTER,
    TRAIN,
    ProtocolError,
    instruction_from_config,
)
from pfsr_core.params import size_of
from pfsr_core.serving.sqlite_file import NodeStoreError
from pfsr_core.settings.fields import SettingsError

FOR_THE_SERVER = (NodeError, NodeStoreError, ProtocolError, SettingsError)
"""Errors whose text is about the run, and never about what is in the data."""

NODES = NodeHost()
"""The nodes that this process answers for; they live as long as the process."""


def answer(request: Request) -> Answer:
    """The node's answer. The text of an error that it raises reaches the server.

    An error may quote the data that caused it. From a node with data of its own only the texts of
    FOR_THE_SERVER leave; of any other error the name leaves, and the text goes to the node's log.
    """
    try:
        return _answer(request)
    except FOR_THE_SERVER:
        raise
    except Exception as error:
        if not request.node_config.get("data-path"):
            raise
        traceback.print_exc()
        error_name = type(error).__name__
        raise NodeFailureError(f"{error_name}; what it says is in the node's log") from None


def _answer(request: Request) -> Answer:
    """Raises ValueError for a kind that no node knows, and whatever the node raises."""
    node = NODES.node(request.run_config, request.node_config)
    if request.kind == LIMITS:
        return Answer(_limits(node, request)._asdict())
    if request.kind == REGISTER:
        node_facts, node_metrics = handlers.register(node, request.config)
        return Answer(node_metrics, node_facts)
    if request.kind == BASELINES:
        return Answer(handlers.baselines(node))
    instruction = instruction_from_config(request.config)
    if request.kind == TRAIN:
        flat_update, metrics = handlers.train(node, instruction, request.flat)
        return Answer(metrics, flat=flat_update)
    if request.kind == FINISH:
        return Answer(handlers.finish(node, instruction, request.flat))
    raise ValueError(f"no node answers {request.kind!r}")


def _limits(node: Node, request: Request) -> Limits:
    """What the answer to ``request.config`` may hold: an array only where clients train."""
    num_values = 0
    if request.config.get("clients"):
        instruction = instruction_from_config(request.config)
        num_values = size_of(node.model(instruction.algorithm).algorithm.client.reply_shapes)
    return Limits(num_values, len(node.clients))
