"""A node that is killed while it trains, and restarted at once by its restart policy."""

from __future__ import annotations

import pytest

from tests.deployment.faults import Fault, faulty_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, SLOWNESS, figure, replay, rows
from tests.deployment.processes import wait_until
from tests.integration.helpers import assert_same_server, final_server

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(900)]

NODES, VICTIM, ROUND = 3, 1, 2
DEADLINE = 40.0 * SLOWNESS
BACK_WITHIN = 120.0
CONFIG = {**QUICK, "federation.rounds": 6, "federation.round-timeout": DEADLINE}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(run, seconds until the node was back, its states at the kill, its states when back)."""
    home = tmp_path_factory.mktemp("killed")
    faults = faulty_app(home, Fault("sleep", VICTIM, ROUND, seconds=60))
    with Federation(home / "federation", NODES) as federation:
        run = federation.submit(CONFIG, app=faults.app)
        wait_until(lambda: faults.training(VICTIM, ROUND), 300, "the second round")
        federation.kill_node(VICTIM)
        faults.plan()
        left = rows(federation.store(VICTIM))
        seconds = federation.keep_node(VICTIM, BACK_WITHIN)
        back = rows(federation.store(VICTIM))
        assert federation.wait(run) == "finished:completed", federation.said(run)
    rounds = [line for line in run.lines() if line["round"] > 0]
    took = {line["round"]: line["seconds"] for line in rounds}
    answered = {line["round"]: line["answered"] for line in rounds}
    figure("node killed", back_seconds=seconds, round_seconds=took, answered=answered)
    return run, seconds, left, back


def test_the_round_closes_by_its_deadline_and_names_the_missing_node(killed):
    run, *_ = killed
    line = next(line for line in run.lines() if line["round"] == ROUND)
    assert line["seconds"] <= DEADLINE + 5
    assert (line["asked"], line["answered"], line["abandoned"]) == (6, 4, 0)
    (drop,) = line["dropped"]
    assert (drop["node"], drop["clients"]) == (VICTIM, 2)


def test_no_later_round_takes_longer_than_its_deadline(killed):
    run, *_ = killed
    assert max(line["seconds"] for line in run.lines()) <= DEADLINE + 5


def test_the_node_is_back_in_time_with_its_state_as_it_was_committed(killed):
    _run, seconds, left, back = killed
    assert seconds <= BACK_WITHIN
    assert left == back
    assert {round_ for *_, round_ in left} == {ROUND - 1}


def test_the_node_takes_part_again(killed):
    run, *_ = killed
    last = run.lines()[-1]
    assert (last["answered"], last["dropped"]) == (6, [])


def test_the_model_is_that_of_the_answers_that_counted(killed):
    run, *_ = killed
    assert_same_server(final_server(run.log, "pfsr"), replay(CONFIG, NODES, run))
