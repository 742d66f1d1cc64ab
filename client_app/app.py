"""The client side of Flower: a message becomes a request to the node, its answer a reply.

Every reply passes the last gate (:mod:`client_app.mods`). Free of torch: Flower starts this in a
new process for every message of a deployment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client_app.messages import LIMITS, Answer, Limits, Request, empty_array
from client_app.mods import only_shared_leaves
from pfsr_core.federated.protocol import (
    BASELINES,
    CONFIG,
    FACTS,
    FINISH,
    METRICS,
    REGISTER,
    SHARED,
    TRAIN,
)

WITH_ARRAY = (TRAIN, FINISH)
FLOWER_PROCESS = "flwr-clientapp"  # it lives for one message

app = ClientApp()


def limits(message: Message, context: Context) -> Limits:
    """What may leave in answer to ``message``, asked separately from the answer itself."""
    limit_values: dict[str, Any] = dict(_ask(LIMITS, message, context).metrics)
    return Limits(**limit_values)


@app.query("register", mods=[only_shared_leaves(limits, (FACTS, METRICS))])
def on_register(message: Message, context: Context) -> Message:
    """Which clients the node hosts, and of which sizes."""
    node_answer = _ask(REGISTER, message, context)
    return _reply(message, node_answer, {FACTS: ConfigRecord(dict(node_answer.facts))})


@app.query("baselines", mods=[only_shared_leaves(limits, (METRICS,))])
def on_baselines(message: Message, context: Context) -> Message:
    """Sums of the model-free baselines."""
    return _reply(message, _ask(BASELINES, message, context))


@app.train(mods=[only_shared_leaves(limits)])
def on_train(message: Message, context: Context) -> Message:
    """One round: the mean of the clients' updates, and the evaluation of what was received."""
    node_answer = _ask(TRAIN, message, context)
    return _reply(message, node_answer, {SHARED: ArrayRecord({SHARED: Array(node_answer.flat)})})


@app.query("finish", mods=[only_shared_leaves(limits, (METRICS,))])
def on_finish(message: Message, context: Context) -> Message:
    """After the last round: the evaluation of what is served from now on."""
    return _reply(message, _ask(FINISH, message, context))


def _ask(request_kind: str, message: Message, context: Context) -> Answer:
    message_content = message.content
    request = Request(
        kind=request_kind,
        run_config=dict(context.run_config),
        node_config=dict(context.node_config),
        config=dict(message_content.config_records.get(CONFIG, {})),
        flat=message_content.array_records[SHARED][SHARED].numpy()
        if request_kind in WITH_ARRAY
        else empty_array(),
    )
    if _short_lived() and context.node_config.get("worker", True):
        from client_app.worker_client import ask

        return ask(request, message.metadata.ttl)
    from client_app.dispatch import answer

    return answer(request)


def _short_lived() -> bool:
    """Whether this process ends with its message: then a resident worker does the work."""
    return Path(sys.argv[0]).name == FLOWER_PROCESS


def _reply(
    message: Message, node_answer: Answer, reply_records: dict[str, Any] | None = None
) -> Message:
    reply_content = {**(reply_records or {}), METRICS: MetricRecord(dict(node_answer.metrics))}
    return Message(RecordDict(reply_content), reply_to=message)
