"""A node whose state file is overwritten, then lost, then given back, while a run goes on."""

from __future__ import annotations

import sqlite3

import pytest

from tests.deployment.faults import Fault, faulty_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, figure, replay
from tests.deployment.processes import wait_until
from tests.integration.helpers import assert_same_server, final_server

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(900)]

NODES, VICTIM, ROUND, ROUNDS = 2, 1, 2, 7
CONFIG = {**QUICK, "federation.rounds": ROUNDS, "federation.round-timeout": 120.0}
GARBAGE = b"not what it was, " * 1000


def back_up(store, copy):
    """A consistent copy, as a backup program makes it."""
    with sqlite3.connect(store) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    target.close()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """(the run, its status, what lay in the file when two rounds had found it overwritten)."""
    home = tmp_path_factory.mktemp("damaged")
    faults = faulty_app(home, Fault("sleep", VICTIM, ROUND, seconds=10))
    with Federation(home / "federation", NODES, secure=False) as federation:
        run = federation.submit(CONFIG, app=faults.app)
        wait_until(lambda: faults.training(VICTIM, ROUND), 300, f"round {ROUND}")
        store, copy = federation.store(VICTIM), home / "backup"
        back_up(store, copy)
        store.write_bytes(GARBAGE)
        wait_until(lambda: run.rounds_done() > ROUND, 300, "a round with an overwritten file")
        left = store.read_bytes()
        store.unlink()
        wait_until(lambda: run.rounds_done() > ROUND + 2, 300, "a round without the file")
        copy.replace(store)
        status = federation.wait(run)
    reasons = {line["round"]: line["dropped"] for line in run.lines() if line["round"]}
    figure("damaged state", dropped=reasons)
    return run, status, left


def reasons(run):
    lines = [line for line in run.lines() if line["round"]]
    return [drop["reason"] for line in lines for drop in line["dropped"]]


def test_the_node_says_what_is_wrong_with_the_file_and_leaves_it_alone(damaged):
    run, _status, left = damaged
    assert "cannot be used as a node store" in reasons(run)[0]
    assert "restore the file from a backup" in reasons(run)[0]
    assert left == GARBAGE


def test_a_lost_file_is_no_fresh_start(damaged):
    run, *_ = damaged
    assert any("has no state of client" in reason for reason in reasons(run))
    assert any("give this node its own store back" in reason for reason in reasons(run))


def test_the_run_goes_on_without_the_node_and_takes_it_back(damaged):
    run, status, _left = damaged
    assert status == "finished:completed"
    assert run.lines()[-1]["dropped"] == []
    by_round = {line["round"]: line for line in run.lines()}
    assert by_round[ROUND]["answered"] == 3
    assert by_round[ROUND]["dropped"][0]["node"] == VICTIM


def test_the_model_is_that_of_the_answers_that_counted(damaged):
    run, *_ = damaged
    assert_same_server(final_server(run.log, "pfsr"), replay(CONFIG, NODES, run))
