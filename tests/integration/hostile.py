"""What a broken or hostile node may answer: a change to an honest reply, and the words of its drop.

Needs Flower and the core only: the fault tests put a copy of this file into a node's own app.
"""

from __future__ import annotations

import math

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord

from pfsr_core.federated.protocol import METRICS, NORMS, SHARED, WEIGHT

HOSTILE_NODE = 1


def change_array(change):
    def apply(message):
        flat = message.content.array_records[SHARED][SHARED].numpy().copy()
        message.content[SHARED] = ArrayRecord({SHARED: Array(change(flat))})

    return apply


def set_metric(name, value):
    def apply(message):
        message.content.metric_records[METRICS][name] = value

    return apply


def put_record(name, record):
    def apply(message):
        message.content[name] = record

    return apply


def remove(name):
    def apply(message):
        del message.content[name]

    return apply


def first_set_to(value):
    def change(flat):
        flat[0] = value
        return flat

    return change


def another_name(message):
    array = message.content.array_records[SHARED][SHARED]
    message.content[SHARED] = ArrayRecord({"item_embedding.weight": array})


def first_norm_nan(message):
    metrics = message.content.metric_records[METRICS]
    metrics[NORMS] = [math.nan, *list(metrics[NORMS])[1:]]


def metric_removed(message):
    del message.content.metric_records[METRICS][WEIGHT]


BAD = {
    "NaN": (change_array(first_set_to(math.nan)), "not finite"),
    "infinite": (change_array(first_set_to(-math.inf)), "not finite"),
    "a million times too large": (change_array(lambda flat: flat * 1e6), "is above 1000"),
    "another name": (another_name, "item_embedding.weight"),
    "a second array": (
        lambda m: m.content.array_records[SHARED].__setitem__("more", Array(np.ones(2))),
        "more",
    ),
    "a value less": (change_array(lambda flat: flat[:-1]), "values"),
    "one value": (change_array(lambda flat: flat[:1]), "values"),
    "two dimensions": (change_array(lambda flat: flat[None]), "values"),
    "float64": (change_array(lambda flat: flat.astype(np.float64)), "float64"),
    "integers": (change_array(lambda flat: flat.astype(np.int32)), "int32"),
    "no array": (remove(SHARED), "records"),
    "no metrics": (remove(METRICS), "records"),
    "metrics that are a config": (put_record(METRICS, ConfigRecord({"a": 1})), "not a record"),
    "a further record": (put_record("extra", MetricRecord({"a": 1})), "extra"),
    "weight 0": (set_metric(WEIGHT, 0.0), "weight"),
    "weight negative": (set_metric(WEIGHT, -5.0), "weight"),
    "weight NaN": (set_metric(WEIGHT, math.nan), "weight"),
    "weight huge": (set_metric(WEIGHT, 1e9), "weight"),
    "weight 1e18": (set_metric(WEIGHT, 1e18), "weight"),
    "weight a list": (set_metric(WEIGHT, [1.0, 2.0]), "weight is a list"),
    "no weight": (metric_removed, "weight is missing"),
    "a further metric": (set_metric("extra", 1.0), "unknown metric 'extra'"),
    "too few norms": (set_metric(NORMS, [1.0]), "norms"),
    "a norm that is NaN": (first_norm_nan, "not finite"),
    "an evaluation that is NaN": (set_metric("valid/seen-filtered/hr@10", math.nan), "not finite"),
}


def one_kind_a_round(message, context, call_next):
    """A mod of the ClientApp: node HOSTILE_NODE spoils its reply, in every round another way."""
    reply = call_next(message, context)
    if context.node_config["partition-id"] != HOSTILE_NODE:
        return reply
    apply, _words = list(BAD.values())[int(message.metadata.group_id) - 1]
    return apply(reply) or reply
