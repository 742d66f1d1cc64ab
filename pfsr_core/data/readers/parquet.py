"""Reader of Parquet and Arrow tables with the names of ``delimited``; a "line" is a row, from 1."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.delimited import ALIASES, find_role, table_to_interactions
from pfsr_core.data.readers.table import Table, check_header, read_bytes


def read_parquet(path: Path, source: str = "") -> Interactions:
    """Interactions of a Parquet file; timestamps are numbers, ISO strings, dates or timestamps."""
    try:
        content = pq.read_table(io.BytesIO(read_bytes(path)))
    except (pa.ArrowException, OSError) as error:
        problem = f"not a complete Parquet file ({str(error).splitlines()[0]})"
        raise MalformedFileError(path, None, problem, "write or copy the file again") from None
    return read_arrow(content, path, source or path.stem)


def read_arrow(content: pa.Table, path: Path, source: str) -> Interactions:
    """Interactions of a table in memory.

    Args:
        content: Columns named as in a file.
        path: What errors name in place of a file.
        source: What the interactions are called.
    """
    names = content.column_names
    check_header(path, names, ())
    if content.num_rows == 0:
        raise MalformedFileError(path, None, "there are no rows", "add interactions")
    roles = {role: find_role(names, role) for role in ALIASES}
    for role, name in roles.items():
        if name is not None:
            _check_column(path, role, name, content[name])
    columns = {name: _as_strings(content[name]) for name in names}
    table = Table(path, range(1, content.num_rows + 1), columns)
    return table_to_interactions(table, source)


def _check_column(path: Path, role: str, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py() + 1
        raise MalformedFileError(path, row, f"{name} is missing", "fill it in or delete the row")
    if pa.types.is_nested(column.type):
        problem = f"the cells of column {name!r} are of type {column.type}"
        raise MalformedFileError(path, None, problem, "store one value a cell")
    # An id read as 7.0 would not be the id 7 of another file.
    if role != "timestamp" and pa.types.is_floating(column.type):
        problem = f"the ids in column {name!r} are stored as {column.type}"
        raise MalformedFileError(path, None, problem, "store them as whole numbers or strings")


def _as_strings(column: pa.ChunkedArray) -> list[str]:
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        microseconds = pa.timestamp("us", tz=getattr(kind, "tz", None))
        moments = column.cast(microseconds, safe=False).cast(pa.int64())
        return ["" if moment is None else repr(moment / 1e6) for moment in moments.to_pylist()]
    return ["" if cell is None else str(cell) for cell in column.to_pylist()]
