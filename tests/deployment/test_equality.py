"""Three SuperNodes over TLS, Flower's simulation and the plain loop: the same tensors."""

from __future__ import annotations

import json
import os
import time

import pytest

from pfsr.cli.run import run_config
from pfsr.deploy import launch
from pfsr.deploy.processes import descendants
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.recommend import recommend
from server_app.run_log import RunLog
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, figure, rows
from tests.deployment.processes import marked
from tests.integration.helpers import assert_same_server, final_server, plain_loop

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(900)]

NODES = 3
CONFIG = {**QUICK, "federation.participation": 0.7}
MARKETS = {
    **QUICK,
    "data.path": "sizes=16/12/8,items=40,seed=3,mean_length=12,sold=60",
    "federation.partition": "column",
    "federation.column": "market",
    "federation.catalogues": "own",
    "model.items": "adapted",
    "train.engine": "loop",
    "train.semantic-share": 0.3,
    "algorithm.name": "fecosr",
    "algorithm.weight-power": 0.5,
    "algorithm.finetune": True,
    "algorithm.fecosr.finetune-epochs": 2,
    "run.selected-by": "clients",
    "run.serve-round": "best",
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A run of three keyed nodes, and the federation, which has ended."""
    federation = Federation(tmp_path_factory.mktemp("equality"), NODES)
    with federation:
        run = federation.submit(CONFIG)
        assert federation.wait(run) == "finished:completed", federation.said(run)
        seconds = time.monotonic() - run.submitted
    per_round = [line["seconds"] for line in run.lines() if line["round"] > 0]
    figure("deployment, three nodes over TLS", run_seconds=seconds, round_seconds=per_round)
    return federation, run


def test_the_deployment_equals_the_plain_loop(deployed):
    _federation, run = deployed
    server, _states = plain_loop(parse_settings(CONFIG), nodes=NODES)
    assert_same_server(final_server(run.log, "pfsr"), server)


def test_the_deployment_equals_the_simulation(deployed, tmp_path, monkeypatch):
    _federation, run = deployed
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    simulated = RunLog(launch.launch(run_config(CONFIG), NODES))
    assert_same_server(final_server(run.log, "pfsr"), final_server(simulated, "pfsr"))


def test_every_node_remembers_its_own_clients_only(deployed):
    federation, run = deployed
    clients = [{client for _, _, client, _ in rows(federation.store(n))} for n in range(NODES)]
    assert all(len(found) == 2 for found in clients)
    assert len(set.union(*clients)) == 6


def test_no_process_is_left(deployed):
    federation, _run = deployed
    assert marked(federation.mark) == []
    assert descendants(os.getpid()) == []


def test_a_market_a_node(tmp_path):
    """FeCoSR: each node finetunes, ships the better model, and recommends with it."""
    federation = Federation(tmp_path / "markets", NODES)
    with federation:
        run = federation.submit(MARKETS)
        assert federation.wait(run) == "finished:completed", federation.said(run)
        log = run.log
    server, _states = plain_loop(parse_settings(MARKETS), nodes=NODES)
    assert_same_server(final_server(log, "fecosr"), server)
    (entry,) = json.loads(log.path("summary.json").read_text("utf-8"))["methods"]
    assert 0 <= entry["outcome"]["shipped-federated"] <= NODES
    for number in range(NODES):
        served = NodeStore(federation.store(number)).served()
        (client,) = served.clients.values()
        user = next(iter(client.histories))
        assert recommend(served, user, 3).recommendations
