"""A clock that only sleeping moves: waits are exact, however busy the machine is."""

from __future__ import annotations

import time

import pytest


class Clock:
    """In place of the functions of :mod:`time` that measure durations, and of its ``sleep``."""

    def __init__(self) -> None:
        self.now = 1000.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("monotonic", "perf_counter"):
            monkeypatch.setattr(time, name, self.read)
        monkeypatch.setattr(time, "sleep", self.sleep)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """For tests whose waiting and work all happen in this thread."""
    found = Clock()
    found.install(monkeypatch)
    return found
