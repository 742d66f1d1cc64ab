"""A broken or hostile node: its answer is dropped with a reason, the round and the run go on."""

from __future__ import annotations

import math

import pytest
import torch
from flwr.app import Error, Message

from pfsr_core.federated.aggregation import merge_replies
from pfsr_core.federated.protocol import TRAIN, WEIGHT
from server_app.strategy import RoundsAbandonedError
from tests.integration.helpers import (
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    settings_in,
    with_rounds,
)
from tests.integration.hostile import BAD, change_array, first_set_to, set_metric
from tests.integration.loopback import run_loopback


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
    from pfsr_core.assembly.assemble import assemble
    from pfsr_core.assembly.data import load_federation
    from pfsr_core.federated.simulation import hosted_by, node_update

    federation = load_federation(settings)
    algorithm = assemble(settings, federation.catalogue).algorithm
    by_name = {data.client: data for data in federation.clients}
    here = [by_name[name] for name in hosted_by(sorted(by_name), 1, 2)]
    server = algorithm.server.init()
    reply, _states = node_update(algorithm, server.broadcast(), {}, here)
    return algorithm.server.update(server, merge_replies([reply]))


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

    rounds = iter([True, True])  # both register; at the first round node 0 is gone

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
    from pfsr_core.assembly.assemble import assemble
    from pfsr_core.assembly.data import load_federation
    from pfsr_core.federated.simulation import hosted_by, node_update

    federation = load_federation(settings)
    algorithm = assemble(settings, federation.catalogue).algorithm
    clients = sorted(federation.clients, key=lambda data: data.client)
    halves = [hosted_by(clients, node, 2) for node in (0, 1)]
    server, states = algorithm.server.init(), {}
    for round_ in (1, 2, 3):
        replies = []
        for node, half in enumerate(halves):
            reply, new = node_update(algorithm, server.broadcast(), states, half)
            if (node, round_) != (0, 2):
                states = {**states, **new}
                replies.append(reply)
        server = algorithm.server.update(server, merge_replies(replies))
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
