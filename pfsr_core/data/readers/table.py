"""A text table with exact line numbers: the ground every reader stands on.

Cells stay strings until they are validated, so that an id such as "007" survives and a fault can
be reported with the line an editor shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.errors import DataUnavailableError, MalformedFileError
from pfsr_core.data.interactions import Interactions

LONGEST_KEPT_VALUE = 256
MISSING_IDS = frozenset({"nan", "NaN", "<NA>"})  # as pandas writes them
SEPARATOR_NAMES = {"\t": "a tab", ",": "a comma", " ": "a space", "::": "'::'", "|": "'|'"}


@dataclass(frozen=True)
class Table:
    """Columns of N cells each; ``lines[row]`` is the line in the file where the row starts."""

    path: Path
    lines: Sequence[int]
    columns: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Schema:
    """Which column plays which role.

    ``positive_ids``: user and item ids must be whole numbers from 1 (0 is padding in that format).
    """

    user: str
    item: str
    timestamp: str
    positive_ids: bool = False
    titles: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


def read_bytes(path: Path) -> bytes:
    """Content of ``path``; raises DataUnavailableError when there is no such file."""
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataUnavailableError(
            "The file", [(str(path), reason)], "check the path and the permissions"
        ) from None


def read_text(path: Path, encoding: str = "utf-8-sig") -> str:
    """Decoded content of ``path``; raises MalformedFileError at the first undecodable byte."""
    data = read_bytes(path)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise MalformedFileError(path, line, problem, "save the file as UTF-8") from None


def read_lines(path: Path, encoding: str = "utf-8-sig") -> list[str]:
    """Lines without their ends; blank lines at the end of the file are dropped."""
    lines = [line.removesuffix("\r") for line in read_text(path, encoding).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise MalformedFileError(path, 1, "the file is empty", "give a file with interactions")
    return lines


def split_table(
    path: Path, lines: Sequence[str], separator: str, names: Sequence[str], first_line: int = 1
) -> Table:
    """A table out of ``lines``, whose first one is line ``first_line`` of the file."""
    rows = [line.split(separator) for line in lines]
    numbers = range(first_line, first_line + len(rows))
    return make_table(path, rows, numbers, names, separator)


def make_table(
    path: Path,
    rows: Sequence[Sequence[str]],
    lines: Sequence[int],
    names: Sequence[str],
    separator: str,
) -> Table:
    """A table out of rows of cells; every row must have as many cells as there are names."""
    if not rows:
        raise MalformedFileError(
            path, 1, "there is no line of data after the header", "add interactions"
        )
    width = len(names)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != width:
            problem = f"{len(row)} fields where {width} are expected"
            fix = f"write {', '.join(names)} separated by {_separator_name(separator)}"
            raise MalformedFileError(path, line, problem, fix)
    columns = dict(zip(names, (list(cells) for cells in zip(*rows, strict=True)), strict=True))
    return Table(path, lines, columns)


def check_header(path: Path, names: Sequence[str], required: Iterable[str]) -> None:
    """Raises MalformedFileError when a name occurs twice, is empty, or a required one is absent."""
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        problem = f"the header names {duplicates[0]!r} twice"
        raise MalformedFileError(path, 1, problem, "give every column its own name")
    for name in required:
        if name not in names:
            problem = f"there is no column {name!r}; the header has {', '.join(map(repr, names))}"
            raise MalformedFileError(path, 1, problem, f"add or rename a column to {name!r}")


def to_interactions(table: Table, schema: Schema, source: str) -> Interactions:
    """Validates ids and timestamps and numbers the ids by first appearance."""
    users, user_ids = _codes(table, schema.user, schema.positive_ids)
    items, item_ids = _codes(table, schema.item, schema.positive_ids)
    return Interactions(
        source=source,
        users=users,
        items=items + 1,
        timestamps=_timestamps(table, schema.timestamp),
        user_ids=user_ids,
        item_ids=item_ids,
        titles={item: schema.titles[item] for item in item_ids if item in schema.titles},
        texts={item: schema.texts[item] for item in item_ids if item in schema.texts},
        columns=_further_columns(table, schema),
    )


def _separator_name(separator: str) -> str:
    return SEPARATOR_NAMES.get(separator, repr(separator))


def _codes(table: Table, name: str, positive: bool) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    numbering: dict[str, int] = {}
    cells = (cell.strip() for cell in table.columns[name])
    codes = np.fromiter((numbering.setdefault(c, len(numbering)) for c in cells), np.int64)
    ids = tuple(numbering)
    # Ids are far fewer than rows: look at each once, then find the row where a bad one appears.
    for code, raw in enumerate(ids):
        fault = _id_fault(raw, positive)
        if fault:
            line = table.lines[int(np.argmax(codes == code))]
            raise MalformedFileError(table.path, line, f"{name} {fault[0]}", fault[1])
    return codes, ids


def _id_fault(raw: str, positive: bool) -> tuple[str, str] | None:
    if not raw:
        return "is empty", "give every row an id, or delete the line"
    if raw in MISSING_IDS:
        return f"is {raw!r}, which stands for a missing value", "fill it in, or delete the line"
    if positive and not (raw.isascii() and raw.isdigit() and int(raw) > 0):
        return f"{raw!r} is not a whole number from 1 on", "number ids from 1; 0 means padding"
    return None


def _timestamps(table: Table, name: str) -> NDArray[np.float64]:
    """Seconds since 1970 (UTC), from numbers or from ISO dates; one kind per column."""
    cells = table.columns[name]
    parse = _number if _is_number(cells[0]) else _iso_seconds
    try:
        seconds = np.fromiter(map(parse, cells), np.float64, len(cells))
    except ValueError:
        seconds = np.array([_or_nan(parse, cell) for cell in cells])
    finite = np.isfinite(seconds)
    if not finite.all():
        row = int(np.argmin(finite))
        problem = f"{name} {cells[row]!r} is not a finite number"
        fix = "write seconds since 1970, or ISO dates in the whole column"
        raise MalformedFileError(table.path, table.lines[row], problem, fix)
    return seconds


def _is_number(cell: str) -> bool:
    return not math.isnan(_or_nan(_number, cell))


def _number(cell: str) -> float:
    # Python reads "1_000" as a thousand; in a data file it is a fault.
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def _or_nan(parse: Callable[[str], float], cell: str) -> float:
    try:
        return parse(cell)
    except ValueError:
        return math.nan


def _iso_seconds(cell: str) -> float:
    moment = datetime.fromisoformat(cell.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _further_columns(table: Table, schema: Schema) -> dict[str, NDArray[np.str_]]:
    # Long texts would be padded to the longest one in a fixed-width array: they are left out.
    return {
        name: np.array(cells, dtype=np.str_)
        for name, cells in table.columns.items()
        if name not in (schema.user, schema.item, schema.timestamp)
        and max(map(len, cells)) <= LONGEST_KEPT_VALUE
    }
