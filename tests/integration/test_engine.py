"""Flower's own simulation engine: real processes, and the same tensors as the plain loop."""

from __future__ import annotations

import json
import os

import pytest

from pfsr_core.assembly import ALGORITHMS
from pfsr_core.settings import parse_settings
from pfsr_core.settings_file import toml_value
from server_app import launch
from server_app.processes import descendants
from server_app.run_log import RunLog
from tests.integration.helpers import (
    assert_same,
    assert_same_server,
    final_server,
    lines,
    plain_loop,
    stored_states,
)
from tests.tiny import TINY

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(600)]

NODES = 2
MAIN, *OTHERS = ALGORITHMS
CONFIG = {
    **TINY,
    "algorithm.name": MAIN,
    "algorithm.finetune": False,
    "run.compare": " ".join(OTHERS),
    "federation.participation": 0.7,
}


@pytest.fixture(scope="module")
def engine_run(tmp_path_factory):
    """All algorithms in one run on one SuperLink."""
    home = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PFSR_HOME", str(home))
        overrides = [f"{key}={toml_value(value)}" for key, value in CONFIG.items()]
        directory = launch.launch(launch.resolve(None, overrides), NODES)
    return home, RunLog(directory)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_engine_equals_the_plain_loop(engine_run, algorithm):
    home, log = engine_run
    settings = parse_settings({**CONFIG, "algorithm.name": algorithm})
    server, states = plain_loop(settings, nodes=NODES)
    assert_same_server(final_server(log, algorithm), server)
    found = stored_states(log, settings, home, NODES)
    assert found.keys() == states.keys()
    for client, state in states.items():
        assert_same(found[client], state)


def test_the_run_left_all_its_files(engine_run):
    _home, log = engine_run
    summary = json.loads(log.path("summary.json").read_text("utf-8"))
    named = {entry["method"] for entry in summary["methods"] if entry["kind"] == "federated"}
    assert named == set(ALGORITHMS)
    assert len(lines(log)) == len(ALGORITHMS) * (CONFIG["federation.rounds"] + 1)
    for name in ("config.json", "environment.json", "data.json", "clients.csv", "report.html"):
        assert log.path(name).stat().st_size > 0


def test_no_process_is_left(engine_run):
    assert descendants(os.getpid()) == []


def test_a_run_that_fails_is_an_error_although_flower_ends_well(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    overrides = ["data.source=file", "data.path=/nowhere/log.csv", "federation.start-timeout=60"]
    with pytest.raises(launch.LaunchError, match="finished:failed"):
        launch.launch(launch.resolve(None, overrides), 1)
