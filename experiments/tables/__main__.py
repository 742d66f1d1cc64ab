"""Regenerates the tables in docs/results from the records of the experiments.

python -m experiments.tables                           # writes the generated parts
python -m experiments.tables --check                   # fails where one is stale
python -m experiments.tables --print ml-latest-small   # the tables of one collection
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from experiments.records import RECORDS, RecordStore
from experiments.tables.comparison import Record
from experiments.tables.pages import PARTS, REPORTS, read_part, write_part

PAGES = Path("docs/results")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; 1 where ``--check`` finds a stale part."""
    options = _options(argv)

    @cache
    def records_of(collection: str) -> list[Record]:
        return list(RecordStore(options.records, collection))

    if options.print:
        texts = [report(records_of(options.print)) for report in REPORTS]
        sys.stdout.write("\n\n".join(text for text in texts if text) + "\n")
        return 0
    stale = []
    for part in PARTS:
        text = part.report(records_of(part.collection))
        if text != read_part(options.pages, part):
            stale.append(part)
            if not options.check:
                write_part(options.pages, part, text)
    for part in stale:
        sys.stdout.write(f"{part}: {'stale' if options.check else 'written'}\n")
    if stale and options.check:
        sys.stderr.write(f"{len(stale)} parts are stale. Fix: run python -m experiments.tables\n")
        return 1
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tables",
        description="Regenerates the tables in docs/results from the records of the experiments.",
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing, fail where one differs"
    )
    parser.add_argument("--print", metavar="COLLECTION", help="print the tables of a collection")
    parser.add_argument("--records", type=Path, default=RECORDS, help="directory of the records")
    parser.add_argument("--pages", type=Path, default=PAGES, help="directory of the pages")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
