"""Processes of a federation: started with a mark, killed by their ids, none left behind.

Flower's daemons start helpers that outlive a killed parent for a moment. The mark, an environment
variable that children inherit, finds them again when no parent points at them any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pfsr.deploy.processes import descendants

MARK = "PFSR_TEST_FEDERATION"


class WaitError(AssertionError):
    """Something that did not happen in time; says what."""


def start(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> subprocess.Popen[bytes]:
    """A daemon in a session of its own, its output appended to ``log``."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and everything it started, as if its host lost its power."""
    for pid in [process.pid, *descendants(process.pid)]:
        _kill(pid)
    process.wait()


def marked(mark: str) -> list[int]:
    """Ids of the living processes that carry ``mark``, but not this one."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in _pids() if pid != os.getpid() and wanted in _environment(pid)]


def sweep(mark: str) -> None:
    """Kills what is left of a federation."""
    wait_until(lambda: not [_kill(pid) for pid in marked(mark)], 20, "the processes to end")


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Raises WaitError when ``condition`` is not true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise WaitError(f"waited {seconds:g} s for {what}")
        time.sleep(0.1)


def reachable(host: str, port: int, prefix: Sequence[str] = ()) -> bool:
    """Does something listen there, as seen from where ``prefix`` runs commands?"""
    program = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    command = [*prefix, sys.executable, "-S", "-c", program, host, str(port)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _kill(pid: int) -> int:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return pid


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _environment(pid: int) -> list[bytes]:
    """Empty for a zombie, and for a process that is not ours."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
