"""The SuperLink is killed in the middle of a round and started again; the run is resumed."""

from __future__ import annotations

import time

import pytest

from tests.deployment.faults import Fault, faulty_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, figure, rows
from tests.deployment.processes import wait_until
from tests.integration.helpers import assert_same_server, final_server, settings_in, without_times
from tests.integration.loopback import run_loopback

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(900)]

NODES, ROUND, ROUNDS = 2, 3, 4
CONFIG = {**QUICK, "federation.rounds": ROUNDS, "federation.round-timeout": 120.0}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """(the interrupted run, its status, rounds done at the kill, the resumed run, node pids)."""
    home = tmp_path_factory.mktemp("superlink")
    faults = faulty_app(home, *(Fault("sleep", node, ROUND, seconds=10) for node in range(NODES)))
    with Federation(home / "federation", NODES) as federation:
        first = federation.submit(CONFIG, app=faults.app)
        wait_until(lambda: faults.training(0, ROUND), 300, f"round {ROUND}")
        federation.kill_superlink()
        done = first.rounds_done()
        faults.plan()
        restarted = time.monotonic()
        federation.start_superlink()
        status = federation.wait(first)
        again = {**CONFIG, "run.resume": first.log.run_id}
        second = federation.submit(again, app=faults.app, root=first.root)
        wait_until(lambda: second.rounds_done() > done, 300, "the first round after the restart")
        figure("SuperLink killed", resumed_round_seconds=time.monotonic() - restarted)
        assert federation.wait(second) == "finished:completed", federation.said(second)
        alive = [process.poll() is None for process in federation.nodes.values()]
        states = [rows(federation.store(node)) for node in range(NODES)]
    return status, done, second, alive, states


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    settings = settings_in(directory, federation__rounds=ROUNDS, federation__round_timeout=120.0)
    log, _grid = run_loopback(settings, directory, NODES)
    return directory, log


def test_the_interrupted_run_is_called_failed_and_keeps_its_last_whole_round(resumed):
    status, done, *_ = resumed
    assert status == "finished:failed"
    assert done == ROUND - 1


def test_the_nodes_reconnect_by_themselves(resumed):
    *_, alive, _states = resumed
    assert alive == [True] * NODES


def test_the_resumed_run_ends_bit_identical_to_an_undisturbed_one(resumed, undisturbed):
    _status, _done, second, _alive, _states = resumed
    _directory, whole = undisturbed
    assert_same_server(final_server(second.log, "pfsr"), final_server(whole, "pfsr"))
    assert without_times(second.log) == without_times(whole)
    for name in ("clients.csv", "best/model.safetensors"):
        assert second.log.path(name).read_bytes() == whole.path(name).read_bytes()


def test_the_private_states_are_those_of_an_undisturbed_run(resumed, undisturbed):
    *_, states = resumed
    directory, whole = undisturbed
    for node, found in enumerate(states):
        expected = rows(directory / "state" / f"node-{node}.sqlite")
        assert without_run(found) == without_run(expected)


def without_run(states):
    return {key[1:]: digest for key, digest in states.items()}
