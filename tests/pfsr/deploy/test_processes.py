"""Processes of Flower: their search path, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pfsr.deploy.processes import descendants, search_path, stop

PROGRAMS = str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", [PROGRAMS]),
        ("/a:/b", [PROGRAMS, "/a", "/b"]),
        (f"{PROGRAMS}:/a", [PROGRAMS, "/a"]),
        (f"/a:{PROGRAMS}", [PROGRAMS, "/a", PROGRAMS]),
    ],
)
def test_programs_of_this_python_are_found_first(before, after, monkeypatch):
    monkeypatch.setenv("PATH", before)
    assert search_path().split(os.pathsep) == after


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_stopping_takes_the_children_along_even_those_in_sessions_of_their_own():
    process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert child in descendants(process.pid)
    stop(process)
    process.stdout.close()
    assert process.poll() is not None
    assert _gone(child)


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        if text.rpartition(")")[2].split()[0] == "Z":  # ended; its new parent has yet to notice
            return True
        time.sleep(0.05)
    return False
