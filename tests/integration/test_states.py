"""Clients that come and go, nodes that restart, runs that stop and continue."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from client_app import hosted_node as hosting
from pfsr_core.federated.protocol import FINISH, TRAIN
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.settings.fields import SettingsError
from tests.integration.helpers import (
    assert_same,
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    settings_in,
    stored_states,
    with_rounds,
    without_times,
)
from tests.integration.loopback import LoopbackGrid, run_loopback


class Stop(BaseException):
    """A kill, as far as Python can feel one."""


def stop_at(round_, kind=TRAIN, partition=1):
    def before(found, message):
        hit = message.metadata.message_type == kind and message.metadata.group_id == str(round_)
        if hit and found == partition:
            raise Stop

    return before


def test_a_client_that_was_absent_comes_back_with_its_state(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=5, federation__participation=0.5)
    server, states = plain_loop(settings, nodes=2)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    rounds = {
        name: NodeStore(tmp_path / "state" / f"node-{p}.sqlite").rounds(log.run_id, "pfsr", name)
        for name in states
        for p in (0, 1)
        if NodeStore(tmp_path / "state" / f"node-{p}.sqlite").rounds(log.run_id, "pfsr", name)
    }
    assert any(len(r) == 2 and r[1] - r[0] > 1 for r in rounds.values()), rounds
    assert_same_server(final_server(log, "pfsr"), server)
    for name, state in stored_states(log, settings, tmp_path, 2).items():
        assert_same(state, states[name])


def test_a_node_that_restarts_in_every_round_keeps_its_state(tmp_path):
    settings = settings_in(tmp_path)

    def forget(_partition, _message):  # a new process has no caches and opens its store anew
        hosting._federation.cache_clear()
        hosting._assemble.cache_clear()

    server, _states = plain_loop(settings, nodes=2)
    log, _grid = run_loopback(settings, tmp_path, nodes=2, before=forget)
    assert_same_server(final_server(log, "pfsr"), server)


@pytest.mark.parametrize(
    ("round_", "kind"),
    [
        pytest.param(1, TRAIN, marks=pytest.mark.slow),
        (2, TRAIN),
        pytest.param(4, TRAIN, marks=pytest.mark.slow),
        (5, FINISH),
    ],
    ids=str,
)
def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path, round_, kind):
    changes = {
        "federation__rounds": 4,
        "federation__participation": 0.7,
        "algorithm__finetune": True,
        "run__compare": "fed-avg",
        "run__baselines": True,
    }
    whole, _grid = run_loopback(settings_in(tmp_path / "a", **changes), tmp_path / "a", nodes=2)
    settings = settings_in(tmp_path / "b", **changes)
    with pytest.raises(Stop):
        run_loopback(settings, tmp_path / "b", nodes=2, before=stop_at(round_, kind))
    (started,) = (tmp_path / "b" / "runs").iterdir()
    again = replace(settings, run=replace(settings.run, resume=started.name))
    log, _grid = run_loopback(again, tmp_path / "b", nodes=2)
    assert log.directory == started
    for algorithm in ("pfsr", "fed-avg"):
        assert_same_server(final_server(log, algorithm), final_server(whole, algorithm))
    assert without_times(log) == without_times(whole)
    assert figures(log) == figures(whole)
    for name in ("clients.csv", "baselines.json", "best/model.safetensors"):
        assert log.path(name).read_bytes() == whole.path(name).read_bytes()


@pytest.mark.parametrize("algorithm", ["pfedrec", "fed-prox"])
def test_a_server_with_moments_resumes_with_them(tmp_path, algorithm):
    changes = {
        "algorithm__name": algorithm,
        "model__items": "shared",
        "federation__partition": "user",
        "federation__participation": 0.5,
        "algorithm__server_optimizer": "adam",
        "algorithm__server_learning_rate": 0.01,
    }
    whole, _grid = run_loopback(settings_in(tmp_path / "a", **changes), tmp_path / "a", nodes=2)
    settings = settings_in(tmp_path / "b", **changes)
    with pytest.raises(Stop):
        run_loopback(settings, tmp_path / "b", nodes=2, before=stop_at(3, TRAIN))
    (started,) = (tmp_path / "b" / "runs").iterdir()
    again = replace(settings, run=replace(settings.run, resume=started.name))
    log, _grid = run_loopback(again, tmp_path / "b", nodes=2)
    server = final_server(log, algorithm)
    assert server.round == 3 and server.slots
    assert_same_server(server, final_server(whole, algorithm))
    found, expected = (
        stored_states(one, settings, tmp_path / name, 2) for one, name in ((log, "b"), (whole, "a"))
    )
    assert found.keys() == expected.keys()
    for client, state in expected.items():
        assert_same(found[client], state)


def figures(log):
    summary = json.loads(log.path("summary.json").read_text())
    for entry in summary["methods"]:
        del entry["seconds"]
    del summary["seconds"], summary["run"]
    for entry in summary["methods"]:  # the run's name is in each order, and so in the bytes sent
        del entry["bytes_down"]
    return summary


def test_a_finished_run_can_be_given_more_rounds(tmp_path):
    """Not by resuming: a finished run is finished, and says so."""
    settings = settings_in(tmp_path, federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    before = without_times(log)
    again = replace(settings, run=replace(settings.run, resume=log.run_id))
    resumed, _grid = run_loopback(with_rounds(again, 2), tmp_path, nodes=2)
    assert without_times(resumed) == before


def test_resuming_with_other_settings_is_refused_by_name(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    other = replace(
        settings,
        run=replace(settings.run, resume=log.run_id),
        train=replace(settings.train, batch_size=8),
    )
    with pytest.raises(SettingsError, match=r"train\.batch-size \(was 4, is 8\)"):
        run_loopback(other, tmp_path, nodes=2)


def test_resuming_what_never_was_names_the_place(tmp_path):
    settings = settings_in(tmp_path, run__resume="gone-1")
    with pytest.raises(SettingsError, match="gone-1"):
        run_loopback(settings, tmp_path, nodes=1)


def test_a_warm_start_begins_with_the_states_of_an_earlier_run(tmp_path):
    settings = settings_in(tmp_path, federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    old = stored_states(log, settings, tmp_path, 2)
    warm = replace(settings, run=replace(settings.run, warm_start=log.run_id, name="warm"))
    loaded = {}

    def look(partition, message):
        if message.metadata.message_type == TRAIN:
            store = NodeStore(tmp_path / "state" / f"node-{partition}.sqlite")
            for name in message.content.config_records["config"]["clients"]:
                run = message.content.config_records["config"]["run"]
                loaded[name] = store.rounds(run, "pfsr", name)

    second, _grid = run_loopback(warm, tmp_path, nodes=2, before=look)
    assert loaded == dict.fromkeys(old, [0])
    assert lines(second)[0]["valid/seen-filtered/mrr"] != lines(log)[0]["valid/seen-filtered/mrr"]


def test_the_finished_model_is_served_without_a_server(tmp_path):
    settings = settings_in(
        tmp_path, federation__rounds=1, algorithm__finetune=True, run__compare="local-only"
    )
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    server = final_server(log, "pfsr")
    for partition in (0, 1):
        served = NodeStore(tmp_path / "state" / f"node-{partition}.sqlite").served()
        assert (served.origin.run, served.origin.algorithm) == (log.run_id, "pfsr")
        assert_same(dict(served.shared), dict(server.params))
        assert len(served.clients) == 3
        assert all(client.histories for client in served.clients.values())


def test_a_node_that_comes_back_under_another_id_takes_its_old_place(tmp_path):
    settings = settings_in(tmp_path)
    server, _states = plain_loop(settings, nodes=2)

    def rename(_partition, message):
        if message.metadata.message_type == TRAIN and message.metadata.group_id == "1":
            grid_ids.append(1)

    grid_ids: list[int] = []
    options = {"before": rename}
    from pfsr_core.assembly.settings import flat_settings
    from server_app.app import run_federation
    from tests.integration.loopback import partitions

    class Renaming(LoopbackGrid):
        def get_node_ids(self):
            if grid_ids and 900 in self.ids:
                self.ids[12345] = self.ids.pop(900)
            return super().get_node_ids()

    configs = partitions(2, tmp_path / "state")
    log = run_federation(Renaming(flat_settings(settings), configs, **options), settings)
    assert_same_server(final_server(log, "pfsr"), server)
    assert all(not line.get("dropped") for line in lines(log))
