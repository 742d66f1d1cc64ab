"""Lists the experiments: ``python -m experiments --help``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

COMMANDS = {
    "run": "run arms of the ablation and record what each found",
    "tables": "regenerate the tables in docs/results from the records",
    "leakage.attack": "measure what one reply tells about a client's history",
    "leakage.plot": "draw accuracy against what a reply tells",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the commands."""
    listed = "\n".join(
        f"  python -m experiments.{name:<16}{text}" for name, text in COMMANDS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Experiments on PFSR: what each part of the method is worth.",
        epilog=f"commands, each with a --help of its own:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(argv)
    parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
