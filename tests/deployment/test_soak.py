"""Three hundred rounds with eight nodes in Flower's simulation: the server must not grow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from pfsr.deploy.app_directory import CHECKOUT
from pfsr.deploy.processes import descendants, stop
from pfsr_core.settings.fields import Value
from pfsr_core.settings.recipes import toml_value
from tests.deployment.helpers import figure
from tests.helpers.tiny import TINY

pytestmark = [pytest.mark.deployment, pytest.mark.network, pytest.mark.timeout(1800)]

NODES, ROUNDS, WARM_UP = 8, 300, 50
MOST_GROWTH = 0.1  # MB a round
SERVER = "flwr-simulation"  # the process in which the simulation runs the ServerApp
CONFIG: dict[str, Value] = {
    **TINY,
    "data.path": "users=16,items=20,seed=3,mean_length=6",
    "federation.clients": NODES,
    "federation.rounds": ROUNDS,
    "model.embedding-dim": 4,
    "model.num-heads": 1,
    "algorithm.pfsr.fisher-samples": 2,
    "algorithm.pfsr.two-phases": False,
    "run.baselines": False,
    "run.evaluate-every": 10,
}


@dataclass(frozen=True)
class Sample:
    """The ServerApp's process after ``round`` rounds: resident memory in MB, open files."""

    round: int
    megabytes: float
    files: int


def server_process(root: int) -> int | None:
    """The descendant of ``root`` that runs the ServerApp, once it is there."""
    for pid in descendants(root):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if any(Path(os.fsdecode(word)).name == SERVER for word in words):
            return pid
    return None


def sample(pid: int, runs: Path) -> Sample | None:
    """None while there is no round yet, and when the process has ended."""
    lines = next(runs.glob("*/metrics.jsonl"), None)
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        round_ = len(lines.read_bytes().splitlines()) if lines else 0
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines())
    if "VmRSS" not in fields or not round_:
        return None
    return Sample(round_, int(fields["VmRSS"].split()[0]) / 1024, files)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """One sample a second, from a run that ended well."""
    home = tmp_path_factory.mktemp("soak")
    command = [sys.executable, "-m", "pfsr", "run", "--nodes", str(NODES)]
    command += [f"{key}={toml_value(value)}" for key, value in CONFIG.items()]
    environment = {**os.environ, "PFSR_HOME": str(home)}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdout=log, stderr=log)
    found: list[Sample] = []
    try:
        while process.poll() is None:
            pid = server_process(process.pid)
            one = sample(pid, home / "runs") if pid else None
            found += [one] if one else []
            time.sleep(1.0)
    finally:
        stop(process)
    assert process.returncode == 0, (home / "log").read_text("utf-8", "replace")[-3000:]
    # After the last round it draws the report, which takes memory once and is no round.
    return [one for one in found if WARM_UP < one.round < ROUNDS]


def test_the_memory_of_the_server_does_not_grow_with_the_rounds(samples):
    rounds = np.array([one.round for one in samples])
    memory = np.array([one.megabytes for one in samples])
    slope = float(np.polyfit(rounds, memory, 1)[0])
    figure(
        "soak",
        rounds=ROUNDS,
        nodes=NODES,
        megabytes_a_round=slope,
        megabytes={one.round: round(one.megabytes, 1) for one in samples[:: len(samples) // 6]},
        files=sorted({one.files for one in samples}),
    )
    assert rounds[-1] >= ROUNDS - 5, "the samples end before the run"
    assert slope < MOST_GROWTH


def test_the_server_opens_no_more_files_with_the_rounds(samples):
    """A file that is being written at the moment of a sample makes one more, here and there."""
    third = len(samples) // 3
    early = median(one.files for one in samples[:third])
    late = median(one.files for one in samples[-third:])
    assert late == early
    assert max(one.files for one in samples) <= early + 3
