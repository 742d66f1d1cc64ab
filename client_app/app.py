"""The client side of Flower: messages to calls of :mod:`client_app.node`, and back."""

from __future__ import annotations

from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client_app import node as nodes
from client_app.hosting import Node, make_node
from client_app.mods import Limits, only_shared_leaves
from pfsr_core.protocol import (
    CONFIG,
    FACTS,
    METRICS,
    SHARED,
    Flat,
    Metrics,
    Order,
    order_from_config,
    size_of,
)
from pfsr_core.settings import parse_settings

app = ClientApp()


def numbers_only(_message: Message, context: Context) -> Limits:
    return Limits(0, len(_node(context).clients))


def shared_and_numbers(message: Message, context: Context) -> Limits:
    """What the answer to a training order may hold."""
    node, order = _node(context), _order(message)
    shapes = nodes.sent_shapes(node, order.algorithm)
    return Limits(size_of(shapes) if order.clients else 0, len(node.clients))


@app.query("hello", mods=[only_shared_leaves(numbers_only, (FACTS, METRICS))])
def hello(message: Message, context: Context) -> Message:
    facts, numbers = nodes.hello(_node(context), message.content.config_records[CONFIG])
    return _answer(message, {FACTS: ConfigRecord(facts), METRICS: MetricRecord(_plain(numbers))})


@app.query("baselines", mods=[only_shared_leaves(numbers_only, (METRICS,))])
def baselines(message: Message, context: Context) -> Message:
    return _answer(message, {METRICS: MetricRecord(_plain(nodes.baselines(_node(context))))})


@app.train(mods=[only_shared_leaves(shared_and_numbers)])
def train(message: Message, context: Context) -> Message:
    flat, metrics = nodes.train(_node(context), _order(message), _received(message))
    arrays = ArrayRecord({SHARED: Array(flat)})
    return _answer(message, {SHARED: arrays, METRICS: MetricRecord(_plain(metrics))})


@app.query("finish", mods=[only_shared_leaves(numbers_only, (METRICS,))])
def finish(message: Message, context: Context) -> Message:
    metrics = nodes.finish(_node(context), _order(message), _received(message))
    return _answer(message, {METRICS: MetricRecord(_plain(metrics))})


def _node(context: Context) -> Node:
    return make_node(parse_settings(context.run_config), context.node_config)


def _order(message: Message) -> Order:
    return order_from_config(message.content.config_records[CONFIG])


def _received(message: Message) -> Flat:
    received: Flat = message.content.array_records[SHARED][SHARED].numpy()
    return received


def _answer(message: Message, records: dict[str, Any]) -> Message:
    return Message(RecordDict(records), reply_to=message)


def _plain(metrics: Metrics) -> dict[str, Any]:
    return dict(metrics)
