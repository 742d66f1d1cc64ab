"""A broken or hostile node: its answer is dropped with a reason, the round and the run go on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord

from pfsr_core.federated import merge_replies
from pfsr_core.protocol import METRICS, NORMS, SHARED, TRAIN, WEIGHT
from server_app.strategy import RoundsAbandonedError
from tests.integration.helpers import (
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    settings_in,
    with_rounds,
)
from tests.integration.loopback import run_loopback


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
    "weight a list": (set_metric(WEIGHT, [1.0, 2.0]), "weight is a list"),
    "no weight": (metric_removed, "weight is missing"),
    "a further metric": (set_metric("extra", 1.0), "unknown metric 'extra'"),
    "too few norms": (set_metric(NORMS, [1.0]), "norms"),
    "a norm that is NaN": (set_metric(NORMS, [math.nan, 1.0, 1.0]), "not finite"),
    "an evaluation that is NaN": (set_metric("valid/excluded/hr@10", math.nan), "not finite"),
}


def tampered(partition, apply, rounds=(1,)):
    def tamper(found, request, reply):
        hit = found == partition and request.metadata.message_type == TRAIN
        if hit and int(request.metadata.group_id) in rounds:
            return apply(reply) or reply
        return reply

    return tamper


@pytest.fixture(scope="module")
def honest_half(tmp_path_factory):
    """The server after a round in which only node 1 of two was honest."""
    directory = tmp_path_factory.mktemp("honest")
    settings = settings_in(
        directory, algorithm__name="fed-avg", federation__rounds=1, federation__clients=6
    )
    from pfsr_core.assembly import assemble, load_federation
    from pfsr_core.simulation import hosted_by, node_update

    federation = load_federation(settings)
    algorithm = assemble(settings, federation.split.item_ids).algorithm
    by_name = {data.client: data for data in federation.clients}
    here = [by_name[name] for name in hosted_by(sorted(by_name), 1, 2)]
    server = algorithm.init()
    reply, _states = node_update(algorithm, server.broadcast(), {}, here)
    return algorithm.server_update(server, merge_replies([reply]))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_answer_is_dropped_and_the_others_count(tmp_path, honest_half, kind):
    apply, words = BAD[kind]
    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2, tamper=tampered(0, apply))
    line = lines(log)[1]
    assert (line["asked"], line["answered"], line["abandoned"]) == (6, 3, 0)
    assert [drop["node"] for drop in line["dropped"]] == [0]
    assert words in line["dropped"][0]["reason"]
    assert_same_server(final_server(log, "fed-avg"), honest_half)


def test_an_error_answer_is_dropped_with_its_reason(tmp_path, honest_half):
    def fail(found, request, reply):
        if found == 0 and request.metadata.message_type == TRAIN:
            return Message(Error(code=1, reason="the disk is full"), reply_to=request)
        return reply

    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2, tamper=fail)
    assert "the disk is full" in lines(log)[1]["dropped"][0]["reason"]
    assert_same_server(final_server(log, "fed-avg"), honest_half)


def test_silence_is_dropped_when_the_round_is_over(tmp_path, honest_half):
    def quiet(found, request, reply):
        return None if found == 0 and request.metadata.message_type == TRAIN else reply

    settings = settings_in(
        tmp_path,
        algorithm__name="fed-avg",
        federation__rounds=1,
        federation__round_timeout=1.0,
    )
    log, _grid = run_loopback(settings, tmp_path, nodes=2, tamper=quiet)
    assert "no answer within 1 s" in lines(log)[1]["dropped"][0]["reason"]
    assert_same_server(final_server(log, "fed-avg"), honest_half)


def test_a_node_that_left_is_missing_not_waited_for(tmp_path, honest_half):
    training = False

    def before(_partition, message):
        nonlocal training
        training = training or message.metadata.message_type == TRAIN

    rounds = iter([True, True])  # both say hello; at the first round node 0 is gone

    def connected(partition):
        return partition == 1 or next(rounds, False)

    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2, before=before, connected=connected)
    assert training
    assert lines(log)[1]["dropped"][0]["reason"] == "not connected"
    assert_same_server(final_server(log, "fed-avg"), honest_half)


def test_a_lost_answer_rolls_its_clients_back(tmp_path):
    """Node 0's answer of round 2 is lost: in round 3 its clients continue from round 1."""
    settings = settings_in(tmp_path, federation__rounds=3)
    log, _grid = run_loopback(
        settings,
        tmp_path,
        nodes=2,
        tamper=tampered(0, change_array(first_set_to(math.nan)), rounds=(2,)),
    )
    from pfsr_core.assembly import assemble, load_federation
    from pfsr_core.simulation import hosted_by, node_update

    federation = load_federation(settings)
    algorithm = assemble(settings, federation.split.item_ids).algorithm
    clients = sorted(federation.clients, key=lambda data: data.client)
    halves = [hosted_by(clients, node, 2) for node in (0, 1)]
    server, states = algorithm.init(), {}
    for round_ in (1, 2, 3):
        replies = []
        for node, half in enumerate(halves):
            reply, new = node_update(algorithm, server.broadcast(), states, half)
            if (node, round_) != (0, 2):
                states = {**states, **new}
                replies.append(reply)
        server = algorithm.server_update(server, merge_replies(replies))
    assert_same_server(final_server(log, "pfsr"), server)


def test_too_few_clients_abandon_the_round_and_it_is_tried_again(tmp_path):
    attempts = 0

    def once(found, request, reply):
        nonlocal attempts
        if found == 0 and request.metadata.group_id == "2":
            attempts += 1
            if attempts == 1:
                set_metric(WEIGHT, -1.0)(reply)
        return reply

    settings = settings_in(tmp_path, federation__rounds=2, federation__min_clients=4)
    server, _states = plain_loop(settings, nodes=2)
    log, _grid = run_loopback(settings, tmp_path, nodes=2, tamper=once)
    second = lines(log)[2]
    assert (second["round"], second["abandoned"], second["answered"]) == (2, 1, 6)
    assert_same_server(final_server(log, "pfsr"), server)


def test_rounds_abandoned_again_and_again_stop_the_run_with_the_way_on(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=2, federation__min_clients=4)
    always = tampered(0, set_metric(WEIGHT, -1.0), rounds=(2,))
    with pytest.raises(RoundsAbandonedError, match="(?s)round 2.*weight.*run.resume"):
        run_loopback(settings, tmp_path, nodes=2, tamper=always)


def test_the_honest_run_is_not_changed_by_checks(tmp_path):
    settings = with_rounds(settings_in(tmp_path), 1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    assert all(not line.get("dropped") for line in lines(log))
    assert torch.isfinite(torch.tensor(lines(log)[1]["train-loss"]))
