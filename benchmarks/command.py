"""Runs benchmarks by name, prints each line as it comes, keeps them on a page."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.timing import Measurement, machine
from pfsr_core.runs.environment import commit

BENCHMARKS = {
    "scan": "benchmarks.scan",
    "encoder": "benchmarks.encoder",
    "serve": "benchmarks.serve",
    "history": "benchmarks.history",
    "round": "benchmarks.rounds",
    "scale": "benchmarks.scale",
}


class UnknownBenchmarkError(ValueError):
    """A name that is no benchmark; names those there are."""


def run(names: Sequence[str], out: Path | None, tell: Callable[[str], None]) -> None:
    """Runs ``names``, or all, and merges their lines into the page in ``out``, if given."""
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        raise UnknownBenchmarkError(
            f"no benchmark named {', '.join(unknown)}. There are: {', '.join(BENCHMARKS)}."
        )
    facts = {"date": date.today().isoformat(), "commit": commit(), "machine": machine()}
    lines: list[dict[str, Any]] = []
    if out is not None:  # what cannot be written is said before minutes of timing
        out.mkdir(parents=True, exist_ok=True)
        old = report.read_lines(out / "performance.jsonl")
    for name in names or BENCHMARKS:
        for measured in _measure(name):
            lines.append({**measured.as_json(), **facts})
            tell(json.dumps(lines[-1]))
    if out is not None:
        tell(f"page: {report.write(report.merge(old, lines), out)}")


def _measure(name: str) -> Iterator[Measurement]:
    found: Iterator[Measurement] = importlib.import_module(BENCHMARKS[name]).measure()
    return found
