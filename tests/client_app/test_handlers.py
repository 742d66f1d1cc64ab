"""What a node does when it is asked, without Flower."""

from __future__ import annotations

import pytest

from client_app.handlers import train
from client_app.hosted_node import NodeError, make_node
from pfsr_core.federated.protocol import Instruction
from pfsr_core.params import pack
from tests.helpers.tiny import tiny_settings
from tests.integration.helpers import lines, settings_in
from tests.integration.loopback import run_loopback


def test_a_node_without_clients_still_answers(tmp_path):
    settings = settings_in(tmp_path, federation__clients=2, federation__rounds=1)
    log, _grid = run_loopback(settings, tmp_path, nodes=3)
    assert lines(log)[1]["answered"] == 2
    assert not lines(log)[1]["dropped"]


def test_a_client_of_another_node_is_refused_by_name(tmp_path):
    one = make_node(tiny_settings(), {"state-dir": str(tmp_path)})
    instruction = Instruction("run", "fed-avg", 1, {"nobody": 0}, clients=("nobody",))
    shared = one.model("fed-avg").algorithm.server.init().params
    with pytest.raises(NodeError, match="nobody"):
        train(one, instruction, pack(shared))


def test_train_writes_its_states_before_it_answers(tmp_path):
    one = make_node(tiny_settings(), {"state-dir": str(tmp_path)})
    names = [data.client for data in one.clients]
    instruction = Instruction(
        "run", "fed-avg", 1, dict.fromkeys(names, 0), clients=tuple(names[:2])
    )
    shared = one.model("fed-avg").algorithm.server.init().params
    train(one, instruction, pack(shared))
    assert [one.store.rounds("run", "fed-avg", name) for name in names[:3]] == [[1], [1], []]
