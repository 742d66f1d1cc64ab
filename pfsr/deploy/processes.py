"""Flower's programs as child processes: their environment, and how they are stopped.

Flower starts its own programs by name, so their directory is on the search path. They start
processes of their own, so a process is stopped together with its descendants.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from pfsr_core.runs.environment import commit

STOP_SECONDS = 20.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # Flower's own is 1 s for every message
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # only a warning of its own
}


def environment(home: Path) -> dict[str, str]:
    """The environment variables of a Flower process whose ``FLWR_HOME`` is ``home``."""
    state = os.environ.get("PFSR_HOME") or ".pfsr"
    return {
        "OMP_NUM_THREADS": "1",
        "PFSR_COMMIT": commit(),
        **os.environ,
        **QUIET,
        "PATH": search_path(),
        "FLWR_HOME": str(home),
        "PFSR_HOME": str(Path(state).expanduser().absolute()),
    }


def search_path() -> str:
    """PATH with the programs of this Python first: Flower starts its own commands by name."""
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    directories = [] if not path else path.split(os.pathsep)
    return path if directories[:1] == [programs] else os.pathsep.join((programs, *directories))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminates ``process``; after STOP_SECONDS kills it and its descendants, by their ids."""
    family = {pid: _process_facts(pid) for pid in [process.pid, *descendants(process.pid)]}
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for pid, facts in family.items():
        now = _process_facts(pid)
        if facts is not None and now is not None and now[1] == facts[1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(root: int) -> list[int]:
    """Ids of the processes that ``root`` started, directly or not: on Linux, elsewhere none."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        facts = _process_facts(int(entry.name))
        if facts is not None:
            parents[int(entry.name)] = facts[0]
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return family[1:]


def _process_facts(pid: int) -> tuple[int, int] | None:
    """(parent, start time): the start time tells whether the id was given to another process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[1]), int(fields[19])
