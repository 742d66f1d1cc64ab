"""Flower's own simulation engine: real processes, and the same tensors as the plain loop."""

from __future__ import annotations

import json
import os

import pytest

from pfsr.cli.run import run_config
from pfsr.deploy import launch
from pfsr.deploy.processes import descendants
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.assembly.settings import parse_settings
from server_app.run_log import RunLog
from tests.helpers.tiny import ITEMS_OF, NEEDS, TINY
from tests.integration.helpers import (
    assert_same,
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    stored_states,
)

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]

NODES = 2
COMMON = {**TINY, "algorithm.finetune": False, "federation.participation": 0.7}
MAIN, *OTHERS = [name for name in ALGORITHMS if name not in ITEMS_OF]
CONFIGS = {
    MAIN: {**COMMON, "algorithm.name": MAIN, "run.compare": " ".join(OTHERS)},
    **{
        name: {**COMMON, **NEEDS[name], "algorithm.name": name, "data.sampled-99": True}
        for name in ITEMS_OF
    },
}
"""By the main algorithm of a run: those that share the items cannot be in one run with others."""


@pytest.fixture(scope="module")
def engine_runs(tmp_path_factory):
    """All algorithms in two runs, each on a SuperLink of its own: home and log by main one."""
    runs = {}
    for main, config in CONFIGS.items():
        home = tmp_path_factory.mktemp("engine")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PFSR_HOME", str(home))
            directory = launch.launch(run_config(config), NODES)
        runs[main] = home, RunLog(directory)
    return runs


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_engine_equals_the_plain_loop(engine_runs, algorithm):
    main = algorithm if algorithm in ITEMS_OF else MAIN
    home, log = engine_runs[main]
    settings = parse_settings({**CONFIGS[main], "algorithm.name": algorithm})
    server, states = plain_loop(settings, nodes=NODES)
    assert_same_server(final_server(log, algorithm), server)
    found = stored_states(log, settings, home, NODES)
    assert found.keys() == states.keys()
    for client, state in states.items():
        assert_same(found[client], state)


@pytest.mark.parametrize("main", CONFIGS)
def test_the_run_left_all_its_files(engine_runs, main):
    _home, log = engine_runs[main]
    trained = {MAIN, *OTHERS} if main == MAIN else {main}
    summary = json.loads(log.path("summary.json").read_text("utf-8"))
    named = {entry["method"] for entry in summary["methods"] if entry["kind"] == "federated"}
    assert named == trained
    assert len(lines(log)) == len(trained) * (COMMON["federation.rounds"] + 1)
    for name in ("config.json", "environment.json", "data.json", "clients.csv", "report.html"):
        assert log.path(name).stat().st_size > 0


def test_no_process_is_left(engine_runs):
    assert descendants(os.getpid()) == []


def test_a_run_that_fails_is_an_error_although_flower_ends_well(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    log = tmp_path / "log.csv"
    log.write_text("colour,taste\nred,sweet\n", "utf-8")
    config = {"data.source": "file", "data.path": str(log), "federation.start-timeout": 60}
    with pytest.raises(launch.LaunchError, match="finished:failed"):
        launch.launch(run_config(config), 1)
