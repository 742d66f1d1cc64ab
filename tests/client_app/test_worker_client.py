"""The resident worker: the same answers as in this process, and an end in every case."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from multiprocessing import Pipe

import numpy as np
import pytest

from client_app import worker_client
from client_app.dispatch import answer
from client_app.messages import LIMITS, NodeFailureError, Request
from client_app.worker import Watch, alive
from pfsr_core.assembly.settings import flat_settings
from pfsr_core.federated.protocol import REGISTER, TRAIN, Instruction, instruction_to_config
from pfsr_core.federated.simulation import hosted_by
from pfsr_core.params import pack
from tests.helpers.tiny import tiny_settings, tiny_world

RUN_CONFIG = flat_settings(tiny_settings(algorithm__name="fed-avg"))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Sockets of this test alone, in a path short enough for one; every worker is ended."""
    directory = tmp_path / "w"
    directory.mkdir()
    monkeypatch.setattr(worker_client.tempfile, "gettempdir", lambda: str(directory))
    started = []
    start = worker_client._start

    def remember(path):
        started.append(start(path))
        return started[-1]

    monkeypatch.setattr(worker_client, "_start", remember)
    yield started
    for process in started:
        process.kill()
        process.wait()


def node_config(directory, **more):
    state = str(directory / "state")
    return {"partition-id": 0, "num-partitions": 2, "state-dir": state, **more}


def train_request(directory):
    _settings, federation, assembly = tiny_world(algorithm__name="fed-avg")
    names = hosted_by(sorted(data.client for data in federation.clients), 0, 2)
    instruction = Instruction(
        "run", "fed-avg", 1, dict.fromkeys(names, 0), tuple(names), evaluate=True
    )
    flat = pack(assembly.algorithm.server.init().params)
    return Request(
        TRAIN, RUN_CONFIG, node_config(directory), instruction_to_config(instruction), flat
    )


def registration(directory, **config):
    return Request(
        REGISTER, RUN_CONFIG, node_config(directory, **config), {"run": "r", "warm-start": ""}
    )


def same(found, expected):
    times = ("seconds", "peak-memory")
    assert {k: v for k, v in found.metrics.items() if k not in times} == {
        k: v for k, v in expected.metrics.items() if k not in times
    }
    assert found.facts == expected.facts
    assert np.array_equal(found.flat, expected.flat)


def test_the_answers_are_those_of_the_process_itself(tmp_path, home):
    same(
        worker_client.ask(train_request(tmp_path / "a"), 60), answer(train_request(tmp_path / "b"))
    )
    same(worker_client.ask(registration(tmp_path / "a"), 60), answer(registration(tmp_path / "b")))
    limits = worker_client.ask(Request(LIMITS, RUN_CONFIG, node_config(tmp_path / "a")), 60)
    assert limits.metrics == {"values": 0, "longest_list": 3}
    assert len(home) == 1, "one worker answered all three"


def test_the_socket_is_private(tmp_path, home):
    worker_client.ask(registration(tmp_path), 60)
    path = worker_client._socket(registration(tmp_path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_an_open_directory_is_refused(tmp_path, home):
    worker_client._directory().chmod(0o755)
    with pytest.raises(NodeFailureError, match="open to others"):
        worker_client.ask(registration(tmp_path), 60)


def test_a_failure_comes_with_its_reason_and_the_worker_stays(tmp_path, home):
    with pytest.raises(NodeFailureError, match="NodeError: node 0 does not host stranger"):
        instruction = Instruction("run", "fed-avg", 1, {"stranger": 0}, ("stranger",))
        request = train_request(tmp_path)
        worker_client.ask(
            Request(
                TRAIN,
                RUN_CONFIG,
                request.node_config,
                instruction_to_config(instruction),
                request.flat,
            ),
            60,
        )
    assert worker_client.ask(registration(tmp_path), 60).facts["partition"] == 0
    assert len(home) == 1


def test_a_worker_that_was_killed_is_replaced(tmp_path, home):
    worker_client.ask(registration(tmp_path), 60)
    home[0].kill()
    home[0].wait()
    assert worker_client.ask(registration(tmp_path), 60).facts["partition"] == 0
    assert len(home) == 2


def test_a_worker_that_dies_on_the_way_is_a_failure_not_a_wait(tmp_path, home):
    worker_client.ask(registration(tmp_path), 60)
    os.kill(home[0].pid, signal.SIGSTOP)  # it will not answer, so the kill comes first
    killer = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -9 {home[0].pid}"])
    with pytest.raises(NodeFailureError, match="ended while it answered"):
        worker_client.ask(registration(tmp_path), 60)
    killer.wait()


def test_a_worker_that_hangs_is_left_when_the_time_is_over(tmp_path, home):
    worker_client.ask(registration(tmp_path), 60)
    os.kill(home[0].pid, signal.SIGSTOP)
    with pytest.raises(NodeFailureError, match="did not answer 'query.register' in 1 s"):
        worker_client.ask(registration(tmp_path), 1)
    assert home[0].poll() is None, "it was not waited for"
    os.kill(home[0].pid, signal.SIGCONT)


def test_an_owner_of_data_keeps_the_text_of_an_error_to_itself(tmp_path, capfd):
    private = tmp_path / "private.csv"
    private.write_text("user,item,time\nsecret-name,17,not-a-time\n")
    config = {"name": "shop", "data-path": str(private), "data-source": "file"}
    request = Request(REGISTER, RUN_CONFIG, {**config, "state-dir": str(tmp_path)})
    with pytest.raises(NodeFailureError) as found:
        answer(request)
    assert str(found.value) == "MalformedFileError; what it says is in the node's log"
    assert "not-a-time" in capfd.readouterr().err


def test_work_that_nobody_waits_for_any_more_is_needless():
    watch = Watch(os.getpid())
    ours, theirs = Pipe()
    assert not watch._needless()
    watch.busy(ours)
    assert not watch._needless()
    theirs.close()
    assert watch._needless()
    watch.idle()
    assert not watch._needless()


def test_another_node_config_has_another_worker_and_ends_the_old_one(tmp_path, home):
    worker_client.ask(registration(tmp_path), 60)
    worker_client.ask(registration(tmp_path, name="other"), 60)
    assert len(home) == 2
    assert home[0].wait(timeout=60) == 0


def test_the_worker_ends_with_its_parent(tmp_path, home):
    """The parent of the asking process stands for Flower's, which starts it for each message."""
    script = f"""
import subprocess, sys, tempfile
from client_app import worker_client, messages
tempfile.gettempdir = lambda: {str(tmp_path / "w")!r}
start = worker_client._start
worker_client._start = lambda path: print((process := start(path)).pid, flush=True) or process
worker_client.ask(messages.Request("unknown", {RUN_CONFIG!r}, {node_config(tmp_path)!r}), 60)
"""
    shell = f"{sys.executable} - <<'END'; true\n{script}\nEND\n"
    number = tmp_path / "worker"
    with number.open("w") as out:
        subprocess.run(["/bin/sh", "-c", shell], stdout=out, stderr=out, check=False)
    worker = int(number.read_text().splitlines()[0])
    deadline = time.monotonic() + 60
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(worker)


def test_flowers_process_does_not_load_torch():
    code = "import sys, client_app.app; print(sorted({'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
