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
from multiprocessing.connection import Client, Connection
from pathlib import Path

from client_app.messages import Answer, NodeFailureError, Request, receive_answer, send_request
from client_app.worker import STOP

CODE_ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
POLL_SECONDS = 0.02


def ask(request: Request, timeout_seconds: float) -> Answer:
    """Asks the worker, which is started where there is none.

    Args:
        request: What the message asks of the node.
        timeout_seconds: After them the answer has no reader any more. The worker ends then, so that
            work that hangs does not keep the node from the next message.

    Raises:
        NodeFailureError: The worker failed, with its reason, or ended before it answered.
    """
    socket_path = _socket(request)
    with _connect(socket_path) or _start_worker(socket_path) as connection:
        try:
            send_request(connection, request)
            if connection.poll(timeout_seconds):
                return receive_answer(connection)
        except (EOFError, OSError) as error:
            raise NodeFailureError(
                f"the node's worker ended while it answered {request.kind!r} ({error!r}); "
                f"the next message starts a new one. Out of memory?"
            ) from None
    raise NodeFailureError(
        f"the node's worker did not answer {request.kind!r} in {timeout_seconds:g} s"
    )


def _socket(request: Request) -> Path:
    """One worker for each node and version of the code, of this parent alone."""
    node_text = json.dumps(dict(request.node_config), sort_keys=True)
    socket_name = hashlib.sha256(f"{CODE_ROOT}\n{node_text}".encode()).hexdigest()[:16]
    return _directory() / f"{os.getppid()}-{socket_name}"


def _directory() -> Path:
    """A directory of this user alone: a process that reaches the worker can read its data."""
    socket_directory = Path(tempfile.gettempdir()) / f"pfsr-workers-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        socket_directory.mkdir(mode=0o700)
    directory_stat = socket_directory.lstat()
    if (
        directory_stat.st_uid != os.getuid()
        or directory_stat.st_mode & 0o077
        or socket_directory.is_symlink()
    ):
        raise NodeFailureError(
            f"{socket_directory} is open to others. Fix: remove it, or set TMPDIR to a directory "
            f"of your own, or switch the worker off with worker=false in the node config."
        )
    return socket_directory


def _connect(socket_path: Path) -> Connection | None:
    try:
        return Client(str(socket_path), family="AF_UNIX")
    except OSError:
        return None


def _start_worker(socket_path: Path) -> Connection:
    """Starts a worker unless another process just did; waits until it answers."""
    with socket_path.with_suffix(".lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        connection = _connect(socket_path)
        if connection is not None:
            return connection
        _stop_older(socket_path)
        socket_path.unlink(missing_ok=True)  # of a worker that was killed
        worker_process = _start(socket_path)
        return _wait(socket_path, worker_process)


def _start(socket_path: Path) -> subprocess.Popen[bytes]:
    worker_environment = {**os.environ, "PYTHONPATH": str(CODE_ROOT)}
    worker_command = [
        sys.executable,
        "-m",
        "client_app.worker",
        str(socket_path),
        str(os.getppid()),
    ]
    return subprocess.Popen(
        worker_command,
        cwd=CODE_ROOT,
        env=worker_environment,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(socket_path: Path, worker_process: subprocess.Popen[bytes]) -> Connection:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and worker_process.poll() is None:
        connection = _connect(socket_path)
        if connection is not None:
            return connection
        time.sleep(POLL_SECONDS)
    worker_process.kill()
    raise NodeFailureError(
        f"the node's worker did not start (exit code {worker_process.wait()}). Fix: see the node's "
        f"log, or switch it off with worker=false in the node config."
    )


def _stop_older(socket_path: Path) -> None:
    """Stops workers of the same parent with other code or another node config: not used again."""
    parent_pid = socket_path.name.partition("-")[0]
    for other_socket in socket_path.parent.glob(f"{parent_pid}-*"):
        connection = (
            None if other_socket.suffix or other_socket == socket_path else _connect(other_socket)
        )
        if connection is not None:
            with connection, contextlib.suppress(EOFError, OSError):
                send_request(connection, Request(STOP, {}, {}))
                receive_answer(connection)
