"""What crosses the wire in a round, as the SuperLink counts it, against the parameters alone."""

from __future__ import annotations

import sqlite3

import pytest

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.params import shapes_of, size_of
from tests.deployment.federation import Federation, Run
from tests.deployment.helpers import QUICK, figure

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(900)]

NODES, SHORT, LONG = 2, 1, 4
# The model of the default recipe on a small world: what is sent depends on the model alone.
CONFIG = {k: v for k, v in QUICK.items() if not k.startswith("model.")} | {
    "model.item-start": "common",
    "run.evaluate-every": 1,
}


def traffic(federation: Federation, run: Run) -> tuple[int, int]:
    """(sent, received) by the SuperLink for a run."""
    path = federation.home / "superlink.sqlite"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as file:
        rows = file.execute("SELECT run_id, bytes_sent, bytes_recv FROM run").fetchall()
    file.close()
    found = {str(number % 2**64): (sent, received) for number, sent, received in rows}
    return found[run.number]


def test_a_round_costs_two_percent_above_its_parameters_at_most(tmp_path):
    settings = parse_settings(CONFIG)
    assembly = assemble(settings, load_federation(settings).split.item_ids)
    shapes = shapes_of(assembly.algorithm.server.init().params)
    parameters = 4 * size_of(shapes) * NODES
    totals = {}
    with Federation(tmp_path, NODES, secure=False) as federation:
        for rounds in (SHORT, LONG):
            run = federation.submit({**CONFIG, "federation.rounds": rounds})
            assert federation.wait(run) == "finished:completed", federation.said(run)
            totals[rounds] = traffic(federation, run)
    down, up = (
        (long - short) / (LONG - SHORT) / parameters
        for short, long in zip(totals[SHORT], totals[LONG], strict=True)
    )
    figure("bytes a round over the parameters' own", down=down, up=up, parameters=parameters)
    assert 1.0 <= down <= 1.02
    assert 1.0 <= up <= 1.02
