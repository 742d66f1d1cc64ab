"""The generated parts of the pages in docs/results, and what each is made from.

A part stands between two comments, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``. What is
outside of them is written by people and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.records import MAIN
from experiments.tables import ablation, histories, items, markets
from experiments.tables.comparison import Record, load_records


class Part(NamedTuple):
    """A generated part of a page.

    Attributes:
        page: File name of the page.
        name: What its markers name it.
        collection: The records that it is made from.
        report: Makes its text from these records.
    """

    page: str
    name: str
    collection: str
    report: Callable[[Iterable[Record]], str]

    def __str__(self) -> str:
        """Page and name."""
        return f"{self.page}: {self.name}"

    @property
    def begin(self) -> str:
        """The marker in front of the part."""
        return f"<!-- {self.name}: begin -->"

    @property
    def end(self) -> str:
        """The marker behind the part."""
        return f"<!-- {self.name}: end -->"


def ablation_report(records: Iterable[Record]) -> str:
    """See :func:`experiments.tables.ablation.report`."""
    return ablation.report(load_records(records))


def item_report(records: Iterable[Record]) -> str:
    """See :func:`experiments.tables.items.report`."""
    return items.report(load_records(records))


def history_report(records: Iterable[Record]) -> str:
    """See :func:`experiments.tables.histories.report`."""
    return histories.report(load_records(records))


def market_report(records: Iterable[Record]) -> str:
    """See :func:`experiments.tables.markets.report`."""
    return markets.report(markets.load_market_records(records))


REPORTS = (ablation_report, item_report, history_report, market_report)
PARTS = (
    Part("personalization.md", "ablation", MAIN, ablation_report),
    Part("item-modes.md", "item modes", MAIN, item_report),
    Part("long-histories.md", "long histories", MAIN, history_report),
    Part("markets.md", "markets, synthetic", MAIN, market_report),
    Part("markets.md", "markets, xmarket", "xmarket", market_report),
)


def read_part(directory: Path, part: Part) -> str:
    """The text of a part as it stands in its page.

    Raises:
        ValueError: A marker is missing.
    """
    return _split(directory / part.page, part)[1].strip("\n")


def write_part(directory: Path, part: Part, text: str) -> None:
    """Puts ``text`` in place of a part.

    Raises:
        ValueError: A marker is missing.
    """
    path = directory / part.page
    head, _, tail = _split(path, part)
    path.write_text(f"{head}{part.begin}\n\n{text}\n\n{part.end}{tail}", "utf-8")


def _split(path: Path, part: Part) -> tuple[str, str, str]:
    """What is before, between and behind the markers."""
    head, begin, rest = path.read_text("utf-8").partition(part.begin)
    inside, end, tail = rest.partition(part.end)
    if not (begin and end):
        raise ValueError(
            f"{path}: no lines '{part.begin}' and '{part.end}'. Fix: put them where it belongs."
        )
    return head, inside, tail
