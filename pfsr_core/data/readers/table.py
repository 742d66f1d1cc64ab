"""A text table with exact line numbers, which every reader builds on.

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
from pfsr_core.data.interactions import LONGEST_KEPT_VALUE, Interactions

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


def read_bytes(file_path: Path) -> bytes:
    """Content of ``file_path``; raises DataUnavailableError when there is no such file."""
    try:
        return file_path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataUnavailableError(
            "The file", [(str(file_path), reason)], "check the path and the permissions"
        ) from None


def read_text(file_path: Path, encoding: str = "utf-8-sig") -> str:
    """Decoded content of ``file_path``; raises MalformedFileError at the first undecodable byte."""
    raw_bytes = read_bytes(file_path)
    try:
        return raw_bytes.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw_bytes.count(b"\n", 0, error.start) + 1
        problem = f"byte 0x{raw_bytes[error.start]:02x} is not UTF-8"
        raise MalformedFileError(file_path, line, problem, "save the file as UTF-8") from None


def read_lines(file_path: Path, encoding: str = "utf-8-sig") -> list[str]:
    """Lines without their ends; blank lines at the end of the file are dropped."""
    lines = [line.removesuffix("\r") for line in read_text(file_path, encoding).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise MalformedFileError(file_path, 1, "the file is empty", "give a file with interactions")
    return lines


def split_table(
    file_path: Path,
    lines: Sequence[str],
    separator: str,
    column_names: Sequence[str],
    first_line: int = 1,
) -> Table:
    """A table out of ``lines``, whose first one is line ``first_line`` of the file."""
    cell_rows = [line.split(separator) for line in lines]
    line_numbers = range(first_line, first_line + len(cell_rows))
    return make_table(file_path, cell_rows, line_numbers, column_names, separator)


def make_table(
    file_path: Path,
    cell_rows: Sequence[Sequence[str]],
    line_numbers: Sequence[int],
    column_names: Sequence[str],
    separator: str,
) -> Table:
    """A table out of rows of cells; every row must have as many cells as there are names."""
    if not cell_rows:
        raise MalformedFileError(
            file_path, 1, "there is no line of data after the header", "add interactions"
        )
    num_columns = len(column_names)
    for line, row in zip(line_numbers, cell_rows, strict=True):
        if len(row) != num_columns:
            problem = f"{len(row)} fields where {num_columns} are expected"
            separator_name = SEPARATOR_NAMES.get(separator, repr(separator))
            fix = f"write {', '.join(column_names)} separated by {separator_name}"
            raise MalformedFileError(file_path, line, problem, fix)
    columns = dict(
        zip(column_names, (list(cells) for cells in zip(*cell_rows, strict=True)), strict=True)
    )
    return Table(file_path, line_numbers, columns)


def check_header(
    file_path: Path, column_names: Sequence[str], required_names: Iterable[str]
) -> None:
    """Raises MalformedFileError when a name occurs twice, is empty, or a required one is absent."""
    duplicates = sorted({name for name in column_names if column_names.count(name) > 1})
    if duplicates:
        problem = f"the header names {duplicates[0]!r} twice"
        raise MalformedFileError(file_path, 1, problem, "give every column its own name")
    for name in required_names:
        if name not in column_names:
            problem = (
                f"there is no column {name!r}; the header has {', '.join(map(repr, column_names))}"
            )
            raise MalformedFileError(file_path, 1, problem, f"add or rename a column to {name!r}")


def to_interactions(table: Table, schema: Schema, source: str) -> Interactions:
    """Validates ids and timestamps and numbers the ids by first appearance."""
    users, user_ids = _number_ids(table, schema.user, schema.positive_ids)
    items, item_ids = _number_ids(table, schema.item, schema.positive_ids)
    further_columns = _further_columns(table, schema)
    return Interactions(
        source=source,
        users=users,
        items=items + 1,
        timestamps=_parse_timestamps(table, schema.timestamp),
        user_ids=user_ids,
        item_ids=item_ids,
        titles={item: schema.titles[item] for item in item_ids if item in schema.titles},
        texts={item: schema.texts[item] for item in item_ids if item in schema.texts},
        columns=further_columns,
        left_out=tuple(
            name
            for name in table.columns
            if name not in (*further_columns, schema.user, schema.item, schema.timestamp)
        ),
    )


def _number_ids(
    table: Table, column_name: str, positive_only: bool
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    code_of_id: dict[str, int] = {}
    cells = (cell.strip() for cell in table.columns[column_name])
    codes = np.fromiter((code_of_id.setdefault(c, len(code_of_id)) for c in cells), np.int64)
    raw_ids = tuple(code_of_id)
    # Ids are far fewer than rows: look at each once, then find the row where a bad one appears.
    for code, raw_id in enumerate(raw_ids):
        fault = _id_fault(raw_id, positive_only)
        if fault:
            line = table.lines[int(np.argmax(codes == code))]
            raise MalformedFileError(table.path, line, f"{column_name} {fault[0]}", fault[1])
    return codes, raw_ids


def _id_fault(raw_id: str, positive_only: bool) -> tuple[str, str] | None:
    if not raw_id:
        return "is empty", "give every row an id, or delete the line"
    if raw_id in MISSING_IDS:
        return f"is {raw_id!r}, which stands for a missing value", "fill it in, or delete the line"
    if positive_only and not (raw_id.isascii() and raw_id.isdigit() and int(raw_id) > 0):
        return f"{raw_id!r} is not a whole number from 1 on", "number ids from 1; 0 means padding"
    return None


def _parse_timestamps(table: Table, column_name: str) -> NDArray[np.float64]:
    """Seconds since 1970 (UTC), from numbers or from ISO dates; one kind per column."""
    cells = table.columns[column_name]
    starts_with_number = not math.isnan(_or_nan(_parse_number, cells[0]))
    parse_cell = _parse_number if starts_with_number else _parse_iso_date
    try:
        seconds = np.fromiter(map(parse_cell, cells), np.float64, len(cells))
    except ValueError:
        seconds = np.array([_or_nan(parse_cell, cell) for cell in cells])
    is_finite = np.isfinite(seconds)
    if not is_finite.all():
        first_wrong = int(np.argmin(is_finite))
        problem = f"{column_name} {cells[first_wrong]!r} is not a finite number"
        fix = "write seconds since 1970, or ISO dates in the whole column"
        raise MalformedFileError(table.path, table.lines[first_wrong], problem, fix)
    return seconds


def _parse_number(cell: str) -> float:
    # Python reads "1_000" as a thousand; in a data file it is a fault.
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def _or_nan(parse_cell: Callable[[str], float], cell: str) -> float:
    try:
        return parse_cell(cell)
    except ValueError:
        return math.nan


def _parse_iso_date(cell: str) -> float:
    date_time = datetime.fromisoformat(cell.strip())
    return (date_time if date_time.tzinfo else date_time.replace(tzinfo=UTC)).timestamp()


def _further_columns(table: Table, schema: Schema) -> dict[str, NDArray[np.str_]]:
    # Long texts would be padded to the longest one in a fixed-width array: they are left out.
    return {
        name: np.array(cells, dtype=np.str_)
        for name, cells in table.columns.items()
        if name not in (schema.user, schema.item, schema.timestamp)
        and max(map(len, cells)) <= LONGEST_KEPT_VALUE
    }
