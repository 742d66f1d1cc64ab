"""Twenty kills at random instants, each followed by ``run.resume``: nothing is torn or changed.

Both apps run in one process over the loopback grid, so that a kill takes the server and its nodes
at the same instant, and a life costs seconds.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfsr.deploy.app_directory import CHECKOUT
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.params import fingerprint
from server_app.checkpoints import load_checkpoint
from server_app.run_log import RunLog
from tests.deployment.helpers import figure
from tests.deployment.killable import NODES, ROUNDS, settings
from tests.deployment.processes import wait_until
from tests.integration.helpers import (
    assert_same,
    assert_same_server,
    final_server,
    stored_states,
    without_times,
)
from tests.integration.loopback import run_loopback

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(900)]

KILLS = 20
EARLY = 4  # every fourth kill comes before or in the first round of a life
MOST_MESSAGES = 3 * NODES  # training orders of the other lives before their kill, at most
DELAY = 0.8  # seconds after the last of these messages, at most


def start(directory: Path, resume: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.deployment.killable", str(directory), resume]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL)


def events(directory: Path) -> list[str]:
    path = directory / "events"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def checkpoint_round(directory: Path) -> int:
    """Reads the checkpoint as a resumed run will; raises CheckpointError when it is torn."""
    config = settings(directory)
    federation = load_federation(config)
    shapes = assemble(config, federation.split.item_ids).shapes
    mark = fingerprint(shapes, "pfsr", federation.split.digest)
    (run,) = (directory / "runs").iterdir()
    progress = load_checkpoint(run / "checkpoint-pfsr", mark)
    return progress.server.round if progress else 0


def one_life(directory: Path, resume: str, delay: float, orders: int) -> int:
    """Kills a process ``delay`` seconds after so many training orders; the round then in flight."""
    known = len(events(directory))
    process = start(directory, resume)

    def far_enough() -> bool:
        words = events(directory)[known:]
        if process.poll() is not None:
            return True  # too far
        return bool(words) and sum(word.startswith("train") for word in words) >= orders

    try:
        wait_until(far_enough, 120, f"{orders} training orders in a life")
        time.sleep(delay)
        assert process.poll() is None, "the run was over before it was killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    trained = [int(word.split()[1]) for word in events(directory) if word.startswith("train")]
    return max(trained, default=0)


@pytest.fixture(scope="module")
def survivor(tmp_path_factory):
    """(directory, the finished run, [(round in flight, round of the checkpoint)] of each kill)."""
    directory = tmp_path_factory.mktemp("kills")
    draw, lost = random.Random(20), []
    resume = ""
    for kill in range(KILLS):
        orders = draw.randint(1, MOST_MESSAGES) if kill % EARLY else 0
        in_flight = one_life(directory, resume, DELAY * draw.random(), orders)
        (run,) = (directory / "runs").iterdir()
        resume = run.name
        lost.append((in_flight, checkpoint_round(directory)))
    with start(directory, resume) as last:
        assert last.wait(300) == 0
    figure("twenty kills", in_flight_and_checkpoint=lost)
    return directory, RunLog(run), lost


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    log, _grid = run_loopback(settings(directory), directory, NODES)
    return directory, log


def test_no_kill_cost_more_than_the_round_in_flight(survivor):
    _directory, _log, lost = survivor
    assert len(lost) == KILLS
    assert all(in_flight - 1 <= kept <= in_flight for in_flight, kept in lost), lost
    assert len({kept for _, kept in lost}) > KILLS / 2, "the kills were not spread over the run"
    assert lost[-1][1] < ROUNDS


def test_the_end_is_bit_identical_to_an_undisturbed_run(survivor, undisturbed):
    directory, log, _lost = survivor
    whole_directory, whole = undisturbed
    assert_same_server(final_server(log, "pfsr"), final_server(whole, "pfsr"))
    found = stored_states(log, settings(directory), directory, NODES)
    expected = stored_states(whole, settings(whole_directory), whole_directory, NODES)
    assert found.keys() == expected.keys()
    for client, state in expected.items():
        assert_same(found[client], state)


def test_the_files_are_those_of_an_undisturbed_run(survivor, undisturbed):
    _directory, log, _lost = survivor
    _whole_directory, whole = undisturbed
    assert without_times(log) == without_times(whole)
    for name in ("clients.csv", "best/model.safetensors", "last/model.safetensors"):
        assert log.path(name).read_bytes() == whole.path(name).read_bytes()
