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


def read_delimited(path: Path, delimiter: str, source: str = "") -> Interactions:
    """Interactions of a text table with a header; timestamps are seconds or ISO dates."""
    return table_to_interactions(read_csv_table(path, delimiter), source or path.stem)


def table_to_interactions(table: Table, source: str) -> Interactions:
    """Finds the three roles in the header; raises MalformedFileError when one is missing."""
    names = list(table.columns)
    roles = {role: find_role(names, role) for role in ALIASES}
    for role, name in roles.items():
        if name is None:
            problem = f"no column for the {role}; the header has {', '.join(map(repr, names))}"
            fix = f"name one of the columns {' or '.join(ALIASES[role][:4])}"
            raise MalformedFileError(table.path, 1, problem, fix)
    user, item, timestamp = (str(name) for name in roles.values())
    titles, texts = _item_words(table, item, TITLES), _item_words(table, item, TEXTS)
    schema = Schema(user, item, timestamp, titles=titles, texts=texts)
    return to_interactions(table, schema, source)


def find_role(names: Sequence[str], role: str) -> str | None:
    """The column of ``names`` that plays ``role`` (a key of ALIASES), or None."""
    plain = {_plain(name): name for name in reversed(names)}
    return next((plain[alias] for alias in ALIASES[role] if alias in plain), None)


def read_csv_table(path: Path, delimiter: str) -> Table:
    """A table with a header in the dialect of RFC 4180 (quotes, doubled quotes inside)."""
    rows, lines = _csv_rows(path, read_text(path), delimiter)
    if not rows:
        raise MalformedFileError(path, 1, "the file is empty", "give a header and interactions")
    names = [name.strip() for name in rows[0]]
    _check_delimiter(path, names, delimiter)
    check_header(path, names, ())
    return make_table(path, rows[1:], lines[1:], names, delimiter)


def _csv_rows(path: Path, text: str, delimiter: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            rows.append(row)
            lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'close every quote; write a quote inside a field as ""'
        raise MalformedFileError(path, start, f"the quotes do not match ({error})", fix) from None
    while rows and not any(cell.strip() for cell in rows[-1]):
        rows.pop()
        lines.pop()
    return rows, lines


def _check_delimiter(path: Path, names: Sequence[str], delimiter: str) -> None:
    if len(names) > 1:
        return
    other = next((mark for mark in (",", ";", "\t", "|", " ") if mark in names[0]), None)
    if other is not None:
        problem = f"the header {names[0]!r} has one field: it is separated by {other!r}"
        fix = f"separate the fields by {SEPARATOR_NAMES[delimiter]}, or use the matching suffix"
        raise MalformedFileError(path, 1, problem, fix)


def _item_words(table: Table, item: str, kinds: Sequence[str]) -> dict[str, str]:
    """The cells of the columns of ``kinds`` by raw item id, joined, where there is one."""
    found = [name for kind in kinds for name in table.columns if _plain(name) == kind]
    ids = (cell.strip() for cell in table.columns[item])
    cells = zip(ids, *(table.columns[name] for name in found), strict=True)
    words = ((raw, " ".join(filter(None, parts))) for raw, *parts in cells)
    return {raw: text for raw, text in words if text}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in " _-")
