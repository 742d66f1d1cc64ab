"""A node of a real federation that answers with something else in every round, over gRPC with TLS.

It has a copy of the app of its own making: the gate that keeps an honest node from sending what it
should not is inside of what spoils the reply.
"""

from __future__ import annotations

import shutil

import pytest

from tests.deployment.faults import copy_app
from tests.deployment.federation import Federation
from tests.deployment.helpers import QUICK, SLOWNESS, figure, replay
from tests.integration import hostile
from tests.integration.helpers import assert_same_server, final_server

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(1500)]

NODES = 3
KINDS = list(hostile.BAD)
HONEST_GATE = "@app.train(mods=[only_shared_leaves(limits)])"
SPOILED = "@app.train(mods=[one_kind_a_round, only_shared_leaves(limits)])"
CONFIG = {**QUICK, "federation.rounds": len(KINDS), "federation.round-timeout": 60.0 * SLOWNESS}


@pytest.fixture(scope="module")
def hostile_app(tmp_path_factory):
    app = tmp_path_factory.mktemp("hostile") / "app"
    copy_app(app)
    shutil.copy(hostile.__file__, app / "client_app" / "hostile.py")
    file = app / "client_app" / "app.py"
    source = file.read_text("utf-8")
    assert source.count(HONEST_GATE) == 1
    imported = "from client_app.hostile import one_kind_a_round\n"
    place = source.index("from client_app.messages")
    file.write_text(source[:place] + imported + source[place:].replace(HONEST_GATE, SPOILED))
    return app


@pytest.fixture(scope="module")
def run(tmp_path_factory, hostile_app):
    with Federation(tmp_path_factory.mktemp("federation"), NODES) as federation:
        run = federation.submit(CONFIG, app=hostile_app)
        status = federation.wait(run, 1200)
        assert status == "finished:completed", federation.said(run)
    lines = run.lines()[1:]
    reasons = {kind: line["dropped"][0]["reason"] for kind, line in zip(KINDS, lines, strict=True)}
    seconds = sum(line["seconds"] for line in lines) / len(lines)
    figure("hostile replies", kinds=len(KINDS), seconds_a_round=seconds, reasons=reasons)
    return run


@pytest.mark.parametrize("kind", KINDS)
def test_only_that_node_is_dropped_and_the_reason_names_what_was_wrong(run, kind):
    line = run.lines()[1 + KINDS.index(kind)]
    (drop,) = line["dropped"]
    assert (drop["node"], drop["clients"]) == (hostile.HOSTILE_NODE, 2)
    assert hostile.BAD[kind][1] in drop["reason"]
    assert (line["asked"], line["answered"], line["abandoned"]) == (6, 4, 0)


def test_the_model_is_that_of_the_honest_nodes(run):
    assert_same_server(final_server(run.log, "pfsr"), replay(CONFIG, NODES, run))
