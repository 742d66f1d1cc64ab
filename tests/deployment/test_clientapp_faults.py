"""ClientApps that raise, die, hang or are slow; too few of them; too few nodes.

One federation for all, so the order of the runs matters: the one that leaves a node hanging is the
last. ``flwr run`` ends with code 0 in each case: a user learns from ``flwr list`` that a run failed
and from ``flwr log`` why.
"""

from __future__ import annotations

import pytest

from pfsr.deploy.processes import stop
from tests.deployment.faults import Fault, faulty_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, SLOWNESS, figure, replay
from tests.integration.helpers import assert_same_server, final_server

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(1500)]

NODES = 3
DEADLINE = 40.0 * SLOWNESS
START_TIMEOUT = 30.0 * SLOWNESS  # two nodes say hello in it, which starts their workers
ROUNDS, RAISES, SLOW, EXITS, WORKER, BACK, HANGS = 6, 1, 2, 3, 4, 5, 6
CONFIG = {**QUICK, "federation.rounds": ROUNDS, "federation.round-timeout": DEADLINE}
PLAN = (
    Fault("raise", 1, RAISES),
    Fault("slow", 0, SLOW),
    Fault("exit-message", 2, EXITS),
    Fault("exit", 0, WORKER),
    Fault("sleep", 1, HANGS, seconds=3600),
)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return faulty_app(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("federation"), NODES) as started:
        yield started


@pytest.fixture(scope="module")
def too_few_answers(federation, faults):
    """(run, what flwr list says, what flwr log says) of a run that node 1 never answers."""
    faults.plan(Fault("raise", 1, 2))
    run = federation.submit({**CONFIG, "federation.min-clients": 5}, app=faults.app)
    federation.wait(run)
    return run, federation.listed(run), federation.said(run)


@pytest.fixture(scope="module")
def too_few_nodes(federation, too_few_answers):
    stop(federation.nodes[2])
    run = federation.submit({**CONFIG, "federation.start-timeout": START_TIMEOUT})
    federation.wait(run)
    answer = run, federation.listed(run), federation.said(run)
    federation.keep_node(2, 120)
    return answer


@pytest.fixture(scope="module")
def faulty(federation, faults, too_few_nodes):
    """A run through everything that a ClientApp can do, by round."""
    faults.plan(*PLAN)
    run = federation.submit(CONFIG, app=faults.app)
    status = federation.wait(run, 600)
    lines = {line["round"]: line for line in run.lines()}
    took = {round_: line["seconds"] for round_, line in lines.items()}
    missing = {round_: [d["node"] for d in lines[round_]["dropped"]] for round_ in lines if round_}
    figure("ClientApp faults", deadline=DEADLINE, round_seconds=took, missing=missing)
    return run, status, lines


def test_too_few_answers_abandon_the_round_and_nothing_is_aggregated(too_few_answers):
    run, listed, said = too_few_answers
    assert listed["status"] == "finished:failed"
    assert "round 2 of pfsr was abandoned 3 times: fewer than 5 clients" in said
    assert "the sensor is unplugged" in said
    assert f"run.resume = '{run.log.run_id}'" in said
    assert run.rounds_done() == 1


def test_too_few_nodes_end_the_run_after_the_stated_wait(too_few_nodes):
    _run, listed, said = too_few_nodes
    assert listed["status"] == "finished:failed"
    assert f"2 of 3 nodes are ready (federation.start-timeout is {START_TIMEOUT:g} s)" in said
    assert "Fix: start the nodes that are missing" in said
    figure("too few nodes", start_timeout=START_TIMEOUT, elapsed=listed["elapsed"])
    assert START_TIMEOUT <= listed["elapsed"] <= START_TIMEOUT + 45 * SLOWNESS  # the process starts


def test_the_run_goes_on_through_every_fault(faulty):
    _run, status, lines = faulty
    assert status == "finished:completed"
    assert list(lines) == list(range(ROUNDS + 1))


def test_an_exception_is_an_answer_and_costs_no_waiting(faulty):
    _run, _status, lines = faulty
    (drop,) = lines[RAISES]["dropped"]
    assert drop["node"] == 1 and "the sensor is unplugged" in drop["reason"]
    assert lines[RAISES]["seconds"] < DEADLINE
    assert lines[RAISES]["answered"] == 4


def test_a_slow_client_is_waited_for_within_the_deadline(faulty):
    _run, _status, lines = faulty
    assert (lines[SLOW]["answered"], lines[SLOW]["dropped"]) == (6, [])


def test_a_process_that_died_is_missed_at_the_deadline(faulty):
    _run, _status, lines = faulty
    assert [drop["node"] for drop in lines[EXITS]["dropped"]] == [2]
    assert lines[EXITS]["seconds"] <= DEADLINE + 5


def test_a_worker_that_died_is_an_answer_and_the_next_message_starts_another(faulty):
    _run, _status, lines = faulty
    reasons = {drop["node"]: drop["reason"] for drop in lines[WORKER]["dropped"]}
    assert "the node's worker ended while it answered 'train'" in reasons[0]
    assert 0 not in [drop["node"] for drop in lines[BACK]["dropped"]]


def test_a_node_whose_process_died_takes_part_again(faulty):
    """Flower notices after 75 s; until then the node answers nothing."""
    _run, _status, lines = faulty
    assert (lines[BACK]["answered"], lines[BACK]["dropped"]) == (6, [])


def test_a_hanging_client_costs_its_round_and_is_back_after_it(faulty):
    run, _status, lines = faulty
    (drop,) = lines[HANGS]["dropped"]
    assert drop == {"node": 1, "reason": f"no answer within {DEADLINE:g} s", "clients": 2}
    assert lines[HANGS]["seconds"] <= DEADLINE + 5
    result = run.log.read("checkpoint-pfsr/result.json")
    assert result["entry"]["dropped_at_finish"] == []


def test_the_model_is_that_of_the_answers_that_counted(faulty):
    run, *_ = faulty
    assert_same_server(final_server(run.log, "pfsr"), replay(CONFIG, NODES, run))
