"""Two hosts: a cable that is out for a while, and a port that is closed to the nodes."""

from __future__ import annotations

import pytest

from tests.deployment.faults import Fault, faulty_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, figure, replay
from tests.deployment.hosts import two_hosts
from tests.deployment.processes import reachable, wait_until
from tests.integration.helpers import assert_same_server, final_server

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(900)]

NODES, ROUND, OUTAGE = 2, 2, 25.0
CONFIG = {**QUICK, "federation.rounds": 3, "federation.round-timeout": 120.0}


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as made:
        yield made


@pytest.fixture(scope="module")
def federation(hosts, tmp_path_factory):
    with Federation(tmp_path_factory.mktemp("hosts"), NODES, sites=hosts.sites) as started:
        yield started


@pytest.fixture(scope="module")
def cut_off(hosts, federation, tmp_path_factory):
    """A run whose nodes train, and answer, while the cable is out."""
    faults = faulty_app(tmp_path_factory.mktemp("app"), Fault("sleep", 0, ROUND, seconds=5))
    run = federation.submit(CONFIG, app=faults.app)
    wait_until(lambda: faults.training(0, ROUND), 300, f"round {ROUND}")
    hosts.cut(OUTAGE)
    status = federation.wait(run)
    took = {line["round"]: line["seconds"] for line in run.lines() if line["round"]}
    answered = {line["round"]: line["answered"] for line in run.lines() if line["round"]}
    figure("cable out", outage=OUTAGE, round_seconds=took, answered=answered)
    return run, status


def test_the_fleet_port_is_open_to_the_nodes_host_and_the_control_port_is_not(federation):
    sites = federation.sites
    assert reachable(sites.host, federation.fleet, sites.nodes)
    assert reachable("127.0.0.1", federation.control, sites.server)
    assert not reachable(sites.host, federation.control, sites.nodes)
    assert not reachable("127.0.0.1", federation.control, sites.nodes)


def test_the_run_outlives_the_outage(cut_off):
    run, status = cut_off
    assert status == "finished:completed"
    assert run.rounds_done() == CONFIG["federation.rounds"]


def test_every_asked_client_is_counted_or_named(cut_off):
    run, _status = cut_off
    for line in run.lines():
        if line["round"]:
            missing = sum(drop["clients"] for drop in line["dropped"])
            assert line["answered"] + missing == line["asked"] == 6


def test_the_model_is_that_of_the_answers_that_counted(cut_off):
    run, _status = cut_off
    assert_same_server(final_server(run.log, "pfsr"), replay(CONFIG, NODES, run))
