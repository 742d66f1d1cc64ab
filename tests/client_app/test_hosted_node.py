"""A node: which clients it hosts, and that it is made once, with its data and its models."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from client_app import hosted_node
from client_app.hosted_node import KEPT_NODES, NodeHost, make_node
from pfsr_core.assembly.settings import flat_settings
from pfsr_core.settings.fields import SettingsError
from tests.helpers.tiny import tiny_settings
from tests.integration.helpers import settings_in
from tests.integration.loopback import run_loopback


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


def test_a_node_with_data_of_its_own_hosts_all_of_it(tmp_path):
    config = {"partition-id": 1, "data-path": "users=12,items=30,seed=9,mean_length=9"}
    one = make_node(tiny_settings(), {**config, "state-dir": str(tmp_path)})
    assert (one.partitions, len(one.clients)) == (0, 6)
    assert sum(len(data.users) for data in one.clients) == 12


def test_state_goes_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path / "home"))
    one = make_node(tiny_settings(), {"partition-id": 3, "num-partitions": 6})
    assert one.store.path == tmp_path / "home" / "state" / "node-3.sqlite"


def test_settings_of_two_algorithms_do_not_share_an_assembly(tmp_path):
    one = make_node(tiny_settings(), {"state-dir": str(tmp_path)})
    a, b = (one.model(name) for name in ("fed-avg", "local-only"))
    assert a.fingerprint != b.fingerprint
    assert replace(one.settings, algorithm=one.settings.algorithm) == one.settings


RUN_CONFIG = flat_settings(tiny_settings())


@pytest.fixture
def calls(monkeypatch):
    """How often data were loaded and models assembled."""
    counted: Counter[str] = Counter()

    def counting(name):
        original = getattr(hosted_node, name)

        def call(*arguments):
            counted[name] += 1
            return original(*arguments)

        monkeypatch.setattr(hosted_node, name, call)

    counting("load_federation")
    counting("assemble")
    return counted


def config_of(tmp_path, partition=0, **more):
    return {"partition-id": partition, "num-partitions": 2, "state-dir": str(tmp_path), **more}


def test_a_node_is_made_once_and_finds_its_model_ready(tmp_path, calls):
    host = NodeHost()
    first = host.node(RUN_CONFIG, config_of(tmp_path))
    again = host.node(dict(RUN_CONFIG), config_of(tmp_path))
    assert again is first
    assert first.model("fed-avg") is again.model("fed-avg")
    assert calls == {"load_federation": 1, "assemble": 1}


def test_nodes_of_one_process_share_data_and_models(tmp_path, calls):
    host = NodeHost()
    one, other = (host.node(RUN_CONFIG, config_of(tmp_path, p)) for p in (0, 1))
    assert one is not other and one.hosted.keys().isdisjoint(other.hosted)
    assert one.model("fed-avg") is other.model("fed-avg")
    assert calls == {"load_federation": 1, "assemble": 1}


@pytest.mark.parametrize(
    "changed",
    [{"train.batch-size": 8}, {"run.baselines": True}, {"model.items": "semantic"}],
    ids=str,
)
def test_another_run_config_is_another_node_over_the_same_data(tmp_path, changed, calls):
    host = NodeHost()
    config = {**RUN_CONFIG, "run.baselines": False}
    first = host.node(config, config_of(tmp_path))
    second = host.node({**config, **changed}, config_of(tmp_path))
    assert second.settings != first.settings
    assert second.model("fed-avg") is not first.model("fed-avg")
    assert calls == {"load_federation": 1, "assemble": 2}


def test_another_node_config_is_another_node(tmp_path):
    host = NodeHost()
    first = host.node(RUN_CONFIG, config_of(tmp_path))
    moved = host.node(RUN_CONFIG, config_of(tmp_path / "elsewhere"))
    assert moved.store.path != first.store.path


def test_no_more_than_a_few_data_sets_are_kept_with_their_nodes(tmp_path, calls):
    host = NodeHost()
    first = host.node(RUN_CONFIG, config_of(tmp_path))
    for seed in (1, 2):
        host.node({**RUN_CONFIG, "run.seed": seed}, config_of(tmp_path))
    assert host.node(RUN_CONFIG, config_of(tmp_path)) is not first
    assert calls["load_federation"] == 4


def test_the_number_of_kept_nodes_is_bounded(tmp_path):
    host = NodeHost()
    first = host.node(RUN_CONFIG, config_of(tmp_path))
    for number in range(KEPT_NODES):
        host.node(RUN_CONFIG, config_of(tmp_path / str(number)))
    assert host.node(RUN_CONFIG, config_of(tmp_path)) is not first


def test_a_failure_is_not_kept(tmp_path):
    host = NodeHost()
    with pytest.raises(SettingsError):
        host.node({**RUN_CONFIG, "model.dim": -1}, config_of(tmp_path))
    assert host.node(RUN_CONFIG, config_of(tmp_path)).clients


def test_a_run_assembles_its_model_once_however_many_messages_it_sends(tmp_path, calls):
    from client_app.dispatch import NODES

    NODES.clear()
    run_loopback(settings_in(tmp_path, federation__rounds=2), tmp_path, nodes=3)
    assert calls == {"load_federation": 1, "assemble": 1}
