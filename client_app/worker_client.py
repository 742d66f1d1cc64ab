"""Asking the node's resident worker, and starting it where there is none yet."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection
from pathlib import Path

from client_app.messages import Answer, NodeFailureError, Request, receive_answer, send_request
from client_app.worker import STOP

CODE = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
POLL_SECONDS = 0.02


def ask(request: Request, seconds: float) -> Answer:
    """The worker's answer. Raises NodeFailureError with its reason, or when it died on the way.

    After ``seconds`` the answer has no reader any more. The worker ends then, so that work that
    hangs does not keep the node from the next message.
    """
    with _connection(_socket(request)) as connection:
        try:
            send_request(connection, request)
            if connection.poll(seconds):
                return receive_answer(connection)
        except (EOFError, OSError) as error:
            raise NodeFailureError(
                f"the node's worker ended while it answered {request.kind!r} ({error!r}); "
                f"the next message starts a new one. Out of memory?"
            ) from None
    raise NodeFailureError(f"the node's worker did not answer {request.kind!r} in {seconds:g} s")


def _socket(request: Request) -> Path:
    """One worker for each node and version of the code, of this parent alone."""
    node = json.dumps(dict(request.node_config), sort_keys=True)
    name = hashlib.sha256(f"{CODE}\n{node}".encode()).hexdigest()[:16]
    return _directory() / f"{os.getppid()}-{name}"


def _directory() -> Path:
    """A directory of this user alone: whoever can reach the worker can read its data."""
    directory = Path(tempfile.gettempdir()) / f"pfsr-workers-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    facts = directory.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or directory.is_symlink():
        raise NodeFailureError(
            f"{directory} is open to others. Fix: remove it, or set TMPDIR to a directory of "
            f"your own, or switch the worker off with worker=false in the node config."
        )
    return directory


@contextlib.contextmanager
def _connection(path: Path) -> Iterator[Connection]:
    connection = _connect(path) or _start_worker(path)
    with connection:
        yield connection


def _connect(path: Path) -> Connection | None:
    try:
        return Client(str(path), family="AF_UNIX")
    except OSError:
        return None


def _start_worker(path: Path) -> Connection:
    """Starts a worker unless another process just did; waits until it answers."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _connect(path)
        if connection is not None:
            return connection
        _stop_older(path)
        path.unlink(missing_ok=True)  # of a worker that was killed
        process = _start(path)
        return _wait(path, process)


def _start(path: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(CODE)}
    command = [sys.executable, "-m", "client_app.worker", str(path), str(os.getppid())]
    return subprocess.Popen(
        command, cwd=CODE, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    )


def _wait(path: Path, process: subprocess.Popen[bytes]) -> Connection:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = _connect(path)
        if connection is not None:
            return connection
        time.sleep(POLL_SECONDS)
    process.kill()
    raise NodeFailureError(
        f"the node's worker did not start (exit code {process.wait()}). Fix: see the node's log, "
        f"or switch it off with worker=false in the node config."
    )


def _stop_older(path: Path) -> None:
    """Stops workers of the same parent with other code or another node config: not used again."""
    parent = path.name.partition("-")[0]
    for other in path.parent.glob(f"{parent}-*"):
        connection = None if other.suffix or other == path else _connect(other)
        if connection is not None:
            with connection, contextlib.suppress(EOFError, OSError):
                send_request(connection, Request(STOP, {}, {}))
                receive_answer(connection)
