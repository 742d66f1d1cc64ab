"""Reader of Parquet tables with the header names of ``delimited``; a "line" is a row, from 1."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.delimited import ALIASES, find_role, table_to_interactions
from pfsr_core.data.readers.table import Table, check_header, read_bytes


def read_parquet(file_path: Path, source: str = "") -> Interactions:
    """Interactions of a Parquet file; timestamps are numbers, ISO strings, dates or timestamps."""
    try:
        content = pq.read_table(io.BytesIO(read_bytes(file_path)))
    except (pa.ArrowException, OSError) as error:
        problem = f"not a complete Parquet file ({str(error).splitlines()[0]})"
        raise MalformedFileError(file_path, None, problem, "write or copy the file again") from None
    names = content.column_names
    check_header(file_path, names, ())
    if content.num_rows == 0:
        raise MalformedFileError(file_path, None, "there are no rows", "add interactions")
    roles = {role: find_role(names, role) for role in ALIASES}
    for role, column_name in roles.items():
        if column_name is not None:
            _check_column(file_path, role, column_name, content[column_name])
    columns = {column_name: _as_strings(content[column_name]) for column_name in names}
    table = Table(file_path, range(1, content.num_rows + 1), columns)
    return table_to_interactions(table, source or file_path.stem)


def _check_column(file_path: Path, role: str, column_name: str, column: pa.ChunkedArray) -> None:
    if column.null_count:
        first_missing = column.is_null().index(True).as_py() + 1
        raise MalformedFileError(
            file_path, first_missing, f"{column_name} is missing", "fill it in or delete the row"
        )
    if pa.types.is_nested(column.type):
        problem = f"the cells of column {column_name!r} are of type {column.type}"
        raise MalformedFileError(file_path, None, problem, "store one value a cell")
    # An id read as 7.0 would not be the id 7 of another file.
    if role != "timestamp" and pa.types.is_floating(column.type):
        problem = f"the ids in column {column_name!r} are stored as {column.type}"
        raise MalformedFileError(file_path, None, problem, "store them as whole numbers or strings")


def _as_strings(column: pa.ChunkedArray) -> list[str]:
    column_type = column.type
    if pa.types.is_timestamp(column_type) or pa.types.is_date(column_type):
        moments = column.cast(pa.timestamp("us", tz=getattr(column_type, "tz", None))).cast(
            pa.int64()
        )
        return ["" if moment is None else repr(moment / 1e6) for moment in moments.to_pylist()]
    return ["" if cell is None else str(cell) for cell in column.to_pylist()]
