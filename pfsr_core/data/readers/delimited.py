"""Any table of interactions: CSV, TSV, text separated by spaces, or Parquet.

The header may use one of several names for each role; further columns are kept as strings.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.table import (
    SEPARATOR_NAMES,
    Schema,
    Table,
    check_header,
    make_table,
    read_text,
    to_interactions,
)

# Compared without case, spaces, "_" and "-"; the first alias that the header has wins.
ALIASES = {
    "user": ("user", "userid", "uid", "customerid", "reviewerid", "sessionid"),
    "item": ("item", "itemid", "iid", "movieid", "sid", "productid", "asin"),
    "timestamp": ("timestamp", "time", "ts", "unixtime", "datetime", "date"),
}
TITLES = ("title", "itemtitle")
TEXTS = (*TITLES, "genre", "genres", "category", "categories", "text", "itemtext", "description")


def read_delimited(file_path: Path, delimiter: str, source: str = "") -> Interactions:
    """Interactions of a text table with a header; timestamps are seconds or ISO dates."""
    return table_to_interactions(read_csv_table(file_path, delimiter), source or file_path.stem)


def table_to_interactions(table: Table, source: str) -> Interactions:
    """Finds the three roles in the header; raises MalformedFileError when one is missing."""
    column_names = list(table.columns)
    roles = {role: find_role(column_names, role) for role in ALIASES}
    for role, column_name in roles.items():
        if column_name is None:
            problem = (
                f"no column for the {role}; the header has {', '.join(map(repr, column_names))}"
            )
            fix = f"name one of the columns {' or '.join(ALIASES[role][:4])}"
            raise MalformedFileError(table.path, 1, problem, fix)
    user_column, item_column, time_column = (str(column_name) for column_name in roles.values())
    titles, texts = _item_words(table, item_column, TITLES), _item_words(table, item_column, TEXTS)
    schema = Schema(user_column, item_column, time_column, titles=titles, texts=texts)
    return to_interactions(table, schema, source)


def find_role(column_names: Sequence[str], role: str) -> str | None:
    """The column of ``column_names`` that plays ``role`` (a key of ALIASES), or None."""
    normalized_names = {_normalize_name(name): name for name in reversed(column_names)}
    return next(
        (normalized_names[alias] for alias in ALIASES[role] if alias in normalized_names), None
    )


def read_csv_table(file_path: Path, delimiter: str) -> Table:
    """A table with a header in the dialect of RFC 4180 (quotes, doubled quotes inside)."""
    cell_rows, line_numbers = _csv_rows(file_path, read_text(file_path), delimiter)
    if not cell_rows:
        raise MalformedFileError(
            file_path, 1, "the file is empty", "give a header and interactions"
        )
    column_names = [name.strip() for name in cell_rows[0]]
    _check_delimiter(file_path, column_names, delimiter)
    check_header(file_path, column_names, ())
    return make_table(file_path, cell_rows[1:], line_numbers[1:], column_names, delimiter)


def _csv_rows(file_path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cell_rows: list[list[str]] = []
    line_numbers: list[int] = []
    start_line = 1
    try:
        for row in reader:
            cell_rows.append(row)
            line_numbers.append(start_line)
            start_line = reader.line_num + 1
    except csv.Error as error:
        fix = 'close every quote; write a quote inside a field as ""'
        raise MalformedFileError(
            file_path, start_line, f"the quotes do not match ({error})", fix
        ) from None
    while cell_rows and not any(cell.strip() for cell in cell_rows[-1]):
        cell_rows.pop()
        line_numbers.pop()
    return cell_rows, line_numbers


def _check_delimiter(file_path: Path, column_names: Sequence[str], delimiter: str) -> None:
    if len(column_names) > 1:
        return
    other_delimiter = next(
        (mark for mark in (",", ";", "\t", "|", " ") if mark in column_names[0]), None
    )
    if other_delimiter is not None:
        problem = (
            f"the header {column_names[0]!r} has one field: it is separated by {other_delimiter!r}"
        )
        fix = f"separate the fields by {SEPARATOR_NAMES[delimiter]}, or use the matching suffix"
        raise MalformedFileError(file_path, 1, problem, fix)


def _item_words(table: Table, item_column: str, wanted_names: Sequence[str]) -> dict[str, str]:
    """The cells of the columns of ``wanted_names`` by raw item id, joined, where there is one."""
    text_columns = [
        name
        for wanted_name in wanted_names
        for name in table.columns
        if _normalize_name(name) == wanted_name
    ]
    raw_ids = (cell.strip() for cell in table.columns[item_column])
    cells = zip(raw_ids, *(table.columns[name] for name in text_columns), strict=True)
    words = ((raw_id, " ".join(filter(None, parts))) for raw_id, *parts in cells)
    return {raw_id: text for raw_id, text in words if text}


def _normalize_name(column_name: str) -> str:
    return "".join(character for character in column_name.lower() if character not in " _-")
