"""A small finished run, written by the plain loop."""

from __future__ import annotations

from pathlib import Path

from pfsr_core.runs.local import simulate
from tests.helpers.tiny import tiny_world


def write_run(directory: Path, **changes: str | int | float | bool) -> list[str]:
    """Writes a run of pfsr, fed-avg and local-only; returns what was told."""
    chosen = {"run__compare": "fed-avg local-only", **changes}
    settings, federation, _ = tiny_world(**chosen)
    told: list[str] = []
    simulate(settings, federation, directory, told.append)
    return told
