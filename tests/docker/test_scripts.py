"""The scripts of the image, run as they are: the entry, the health check, the build's helper."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.docker.engine import FOLDER, ROOT, call

ENTRY = str(FOLDER / "entry.sh")
LONG = "30"


def entry(*command: str, delay: str = "0") -> subprocess.CompletedProcess[str]:
    return call(ENTRY, *command, env={**os.environ, "PFSR_RESTART_DELAY": delay}, seconds=20)


@pytest.mark.parametrize("code", [0, 1, 49])
def test_the_entry_ends_as_the_command_did(code: int) -> None:
    assert entry("sh", "-c", f"exit {code}").returncode == code


def test_the_entry_hands_words_over_unchanged() -> None:
    assert entry("printf", "%s|", "a b", '"c"', "").stdout == 'a b|"c"||'


def test_a_success_is_not_delayed() -> None:
    assert entry("true", delay=LONG).returncode == 0


def test_a_failure_is_delayed_and_says_so() -> None:
    began = time.monotonic()
    done = entry("sh", "-c", "exit 3", delay="1")
    assert time.monotonic() - began >= 1.0
    assert done.returncode == 3 and "waiting 1 seconds" in done.stderr


@pytest.mark.parametrize(
    "command", ["trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"]
)
def test_a_stop_reaches_the_command_and_is_not_delayed(command: str) -> None:
    with _start("sh", "-c", command) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 7


def test_a_stop_ends_the_wait() -> None:
    with _start("sh", "-c", "echo ended; exit 3") as process:
        assert process.stdout is not None and process.stdout.readline() == "ended\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 3


def _start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [ENTRY, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PFSR_RESTART_DELAY": LONG},
    )


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[int]:
    """The port of a web server on loopback."""
    with HTTPServer(("127.0.0.1", 0), Answers) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield web.server_port
        web.shutdown()
        thread.join()


def health(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return call(sys.executable, str(FOLDER / "health.py"), env=environment, seconds=30)


def test_a_process_that_answers_is_well(server: int) -> None:
    assert health(PFSR_HEALTH_URL=f"http://127.0.0.1:{server}/health").returncode == 0


def test_one_that_answers_with_an_error_is_not(server: int) -> None:
    done = health(PFSR_HEALTH_URL=f"http://127.0.0.1:{server}/other")
    assert done.returncode == 1 and "503" in done.stderr


def test_one_that_does_not_answer_is_not() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens
        done = health(PFSR_HEALTH_URL=f"http://127.0.0.1:{bound.getsockname()[1]}/health")
    assert done.returncode == 1 and "does not answer" in done.stderr


def test_a_proxy_is_not_asked(server: int) -> None:
    url = f"http://127.0.0.1:{server}/health"
    assert health(PFSR_HEALTH_URL=url, http_proxy="http://127.0.0.1:9").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="connections are read from /proc")
def test_a_node_is_well_only_while_it_is_connected(server: int) -> None:
    url = f"http://127.0.0.1:{server}/health"
    with socket.create_server(("127.0.0.1", 0)) as superlink:
        peer = f"superlink:{superlink.getsockname()[1]}"
        before = health(PFSR_HEALTH_URL=url, PFSR_HEALTH_PEER=peer)
        with socket.create_connection(superlink.getsockname()):
            during = health(PFSR_HEALTH_URL=url, PFSR_HEALTH_PEER=peer)
    assert (before.returncode, during.returncode) == (1, 0)
    assert "no open connection" in before.stderr


@pytest.mark.parametrize(
    ("cuda", "allowed", "refused"),
    [(None, "cpu", False), ("12.8", "cpu", True), ("12.8", "any", False)],
)
def test_a_torch_for_cuda_is_refused_unless_wanted(
    cuda: str | None, allowed: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tmp_path / "torch" / "version.py"
    version.parent.mkdir()
    version.write_text(f"cuda = {cuda!r}\n", "utf-8")
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path))
    monkeypatch.setenv("TORCH_BUILD", allowed)
    answer = runpy.run_path(str(FOLDER / "wheels.py"))["check"]()
    assert (answer != 0) == refused
    assert not refused or ("CUDA 12.8" in answer and "PIP_ARGS" in answer)


def test_the_build_installs_what_the_project_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    wanted = runpy.run_path(str(FOLDER / "wheels.py"))["dependencies"]()
    assert any(word.startswith("flwr>=") for word in wanted)
    assert not any(
        "simulation" in word or "ray" in word.split(">")[0].split("=") for word in wanted
    )


def test_the_build_gives_the_secret_authority_to_every_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_ARGS", "--extra-index-url 'https://index.example/a b'")
    monkeypatch.delenv("PIP_CERT", raising=False)
    calls: list[tuple[list[str], dict[str, str]]] = []

    def run(
        command: list[str], *, env: dict[str, str], **_options: object
    ) -> subprocess.CompletedProcess[str]:
        calls.append((command, env))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", run)
    install = runpy.run_path(str(FOLDER / "wheels.py"))["install"]
    (tmp_path / "ca").touch()
    for name in ("absent", "ca"):
        monkeypatch.setitem(install.__globals__, "CERTIFICATES", tmp_path / name)
        assert install(["torch"]) == 0
    assert ["PIP_CERT" in env for _, env in calls] == [False, True]
    words = ["--extra-index-url", "https://index.example/a b", "torch"]
    assert calls[1][0][-3:] == words and calls[1][1]["PIP_CERT"] == str(tmp_path / "ca")
