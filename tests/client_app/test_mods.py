"""The last gate and the node: what may not leave does not leave, whoever made it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client_app import handlers as node
from client_app import hosted_node as hosting
from client_app.hosted_node import NodeError, make_node
from client_app.messages import Limits
from client_app.mods import GateError, check
from pfsr_core.federated.protocol import METRICS, SHARED, Order
from pfsr_core.params import pack
from tests.helpers.tiny import tiny_settings
from tests.integration.helpers import lines, settings_in
from tests.integration.loopback import run_loopback

LIMITS = Limits(values=5, longest_list=2)


def reply(array=None, metrics=None, **further):
    array = np.zeros(5, np.float32) if array is None else array
    records = {SHARED: ArrayRecord({SHARED: Array(array)}), METRICS: MetricRecord(metrics or {})}
    return RecordDict({**records, **further})


def test_what_the_protocol_names_passes():
    check(reply(metrics={"norms": [1.0, 2.0]}), LIMITS, (SHARED, METRICS))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (reply(np.zeros(6, np.float32)), "5 values"),
        (reply(np.zeros((5, 1), np.float32)), "5 values"),
        (reply(np.zeros(5)), "float64"),
        (reply(extra=ArrayRecord({"x": Array(np.zeros(1))})), "extra"),
        (reply(extra=ConfigRecord({"x": "a secret"})), "extra"),
        (reply(metrics={"norms": [1.0] * 3}), "3 values"),
        (RecordDict({METRICS: MetricRecord({})}), "records"),
    ],
)
def test_anything_else_is_stopped(content, words):
    with pytest.raises(GateError, match=words):
        check(content, LIMITS, (SHARED, METRICS))


def test_a_second_array_and_another_name_are_stopped():
    two = reply()
    two[SHARED] = ArrayRecord({SHARED: Array(np.zeros(5, np.float32)), "b": Array(np.zeros(1))})
    other = reply()
    other[SHARED] = ArrayRecord({"item_embedding.weight": Array(np.zeros(5, np.float32))})
    for content in (two, other):
        with pytest.raises(GateError, match="only shared leaves"):
            check(content, LIMITS, (SHARED, METRICS))


def test_a_mistake_in_an_algorithm_ends_at_the_gate(tmp_path, monkeypatch):
    """Node 0's code puts the private table among what it sends: the server never gets it."""
    honest = node.pack
    secret = torch.full((41, 8), 0.123)

    def leaking(params):
        return honest({**params, "zz": secret}) if params else honest(params)

    monkeypatch.setattr(node, "pack", leaking)
    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    from server_app.instructions import RoundsAbandonedError

    wire = []
    with pytest.raises(RoundsAbandonedError, match="GateError"):
        run_loopback(settings, tmp_path, nodes=2, wire=wire)
    assert wire  # the hellos
    assert secret.numpy()[0].tobytes() not in b"".join(data for _p, _kind, data in wire)


def test_nodes_share_the_clients_out(tmp_path):
    nodes = [
        make_node(
            tiny_settings(),
            {"partition-id": p, "num-partitions": 4, "state-dir": str(tmp_path)},
        )
        for p in range(4)
    ]
    names = [data.client for one in nodes for data in one.clients]
    assert sorted(names) == [f"group-0{i}" for i in range(6)]
    assert [one.store.path.name for one in nodes] == [f"node-{p}.sqlite" for p in range(4)]


def test_a_node_without_clients_still_answers(tmp_path):
    settings = settings_in(tmp_path, federation__clients=2, federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=3)
    assert lines(log)[1]["answered"] == 2
    assert not lines(log)[1]["dropped"]


def test_a_node_with_data_of_its_own_hosts_all_of_it(tmp_path):
    config = {"partition-id": 1, "data-path": "users=12,items=30,seed=9,mean_length=9"}
    one = make_node(tiny_settings(), {**config, "state-dir": str(tmp_path)})
    assert (one.partitions, len(one.clients)) == (0, 6)
    assert sum(len(data.users) for data in one.clients) == 12


def test_state_goes_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path / "home"))
    one = make_node(tiny_settings(), {"partition-id": 3, "num-partitions": 6})
    assert one.store.path == tmp_path / "home" / "state" / "node-3.sqlite"


def test_a_stranger_is_refused_by_name(tmp_path):
    one = make_node(tiny_settings(), {"state-dir": str(tmp_path)})
    order = Order("run", "fed-avg", 1, {"nobody": 0}, clients=("nobody",))
    shared = hosting.assembly_of(one, "fed-avg").algorithm.server.init().params
    with pytest.raises(NodeError, match="nobody"):
        node.train(one, order, pack(shared))


def test_train_writes_its_states_before_it_answers(tmp_path):
    one = make_node(tiny_settings(), {"state-dir": str(tmp_path)})
    names = [data.client for data in one.clients]
    order = Order("run", "fed-avg", 1, dict.fromkeys(names, 0), clients=tuple(names[:2]))
    shared = hosting.assembly_of(one, "fed-avg").algorithm.server.init().params
    node.train(one, order, pack(shared))
    assert [one.store.rounds("run", "fed-avg", name) for name in names[:3]] == [[1], [1], []]


def test_settings_of_two_algorithms_do_not_share_an_assembly(tmp_path):
    one = make_node(tiny_settings(), {"state-dir": str(tmp_path)})
    a, b = (hosting.assembly_of(one, name) for name in ("fed-avg", "local-only"))
    assert a.fingerprint != b.fingerprint
    assert replace(one.settings, algorithm=one.settings.algorithm) == one.settings
