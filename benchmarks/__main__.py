"""``python -m benchmarks``: times parts of PFSR against peers, and keeps the lines on a page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import BENCHMARKS, UnknownBenchmarkError, run
from pfsr.cli.errors import error_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmarks that are named; exit status 2 for an unknown one or a path in the way."""
    options = _parser().parse_args(arguments)
    try:
        run(options.names, options.out, _write_line)
    except (UnknownBenchmarkError, OSError) as error:
        sys.stderr.write(f"error: {error_text(error)}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Time the parts of PFSR against peers; one JSON line for each measurement.",
    )
    names = f"of {', '.join(BENCHMARKS)}; default: all"
    parser.add_argument("names", nargs="*", metavar="NAME", help=names)
    page = "directory of performance.md, its lines and plots, to which the measurements are added"
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help=page)
    return parser


def _write_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
