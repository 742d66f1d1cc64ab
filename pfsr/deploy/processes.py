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


def environment(flower_home: Path) -> dict[str, str]:
    """The environment variables of a Flower process whose ``FLWR_HOME`` is ``flower_home``."""
    pfsr_home = os.environ.get("PFSR_HOME") or ".pfsr"
    return {
        "OMP_NUM_THREADS": "1",
        "PFSR_COMMIT": commit(),
        **os.environ,
        **QUIET,
        "PATH": search_path(),
        "FLWR_HOME": str(flower_home),
        "PFSR_HOME": str(Path(pfsr_home).expanduser().absolute()),
    }


def search_path() -> str:
    """PATH with the programs of this Python first: Flower starts its own commands by name."""
    python_programs, old_path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    path_entries = [] if not old_path else old_path.split(os.pathsep)
    if path_entries[:1] == [python_programs]:
        return old_path
    return os.pathsep.join((python_programs, *path_entries))


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminates ``process``; after STOP_SECONDS kills it and its descendants, by their ids."""
    process_family = {pid: _process_facts(pid) for pid in [process.pid, *descendants(process.pid)]}
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    for pid, process_facts in process_family.items():
        current_facts = _process_facts(pid)
        if (
            process_facts is not None
            and current_facts is not None
            and current_facts[1] == process_facts[1]
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait()


def descendants(root_pid: int) -> list[int]:
    """Ids of the processes that ``root_pid`` started, directly or not: on Linux, elsewhere none."""
    parent_pids = {}
    for proc_entry in Path("/proc").glob("[0-9]*"):
        process_facts = _process_facts(int(proc_entry.name))
        if process_facts is not None:
            parent_pids[int(proc_entry.name)] = process_facts[0]
    process_family = [root_pid]
    for pid in process_family:
        process_family += [
            child_pid for child_pid, parent_pid in parent_pids.items() if parent_pid == pid
        ]
    return process_family[1:]


def _process_facts(pid: int) -> tuple[int, int] | None:
    """(parent, start time): the start time tells whether the id was given to another process."""
    try:
        stat_text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    stat_fields = stat_text.rpartition(")")[2].split()
    return int(stat_fields[1]), int(stat_fields[19])
