"""Rounds that sample a few of many clients say, send and evaluate no more than these."""

from __future__ import annotations

import pytest

from pfsr_core.assembly.data import load_federation
from pfsr_core.federated.protocol import CONFIG, FINISH, TRAIN
from pfsr_core.federated.sampling import sample_clients
from tests.integration.helpers import (
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    settings_in,
    stored_states,
)
from tests.integration.loopback import run_loopback

SAMPLED = {
    "federation__partition": "user",
    "federation__participation": 0.25,
    "federation__rounds": 3,
    "run__evaluate_clients": "asked",
    "algorithm__name": "fed-avg",
}


@pytest.fixture
def sampled_run(tmp_path):
    """A finished run of 24 clients, 6 of them asked a round, and every order it sent."""
    settings, orders = settings_in(tmp_path, **SAMPLED), []

    def note(_partition, message):
        kind = message.metadata.message_type
        if kind in (TRAIN, FINISH):
            orders.append((kind, dict(message.content.config_records[CONFIG])))

    log, _grid = run_loopback(settings, tmp_path, nodes=2, before=note)
    return settings, log, orders


def asked_in(settings, round_):
    names = sorted(data.client for data in load_federation(settings).clients)
    return sample_clients(names, settings.federation.participation, settings.run.seed, round_)


def test_orders_name_the_asked_clients_and_their_last_rounds_only(sampled_run):
    settings, _log, orders = sampled_run
    trained = set()
    for round_ in (1, 2, 3):
        asked = set(asked_in(settings, round_))
        of_round = [o for kind, o in orders if kind == TRAIN and o["round"] == round_]
        assert {name for order in of_round for name in order["clients"]} == asked
        assert {name for order in of_round for name in order["hosted"]} == asked & trained
        trained |= asked
    finished = {name for kind, order in orders if kind == FINISH for name in order["clients"]}
    assert finished == trained and len(trained) < 24


def test_a_round_evaluates_the_clients_that_it_trains(sampled_run):
    settings, log, _orders = sampled_run
    found = lines(log)
    assert [line["valid/users"] for line in found[:-1]] == [6, 6, 6]
    trained = {name for round_ in (1, 2, 3) for name in asked_in(settings, round_)}
    assert found[-1]["valid/users"] == len(trained)
    rows = log.path("clients.csv").read_text("utf-8").splitlines()[1:]
    assert len(rows) == 2 * len(trained)


def test_the_model_is_that_of_the_plain_loop(sampled_run, tmp_path):
    settings, log, _orders = sampled_run
    server, states = plain_loop(settings, nodes=2)
    assert_same_server(final_server(log, "fed-avg"), server)
    assert stored_states(log, settings, tmp_path, nodes=2).keys() == states.keys()
