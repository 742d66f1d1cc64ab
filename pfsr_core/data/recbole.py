"""Reader of RecBole's atomic files (https://recbole.io/docs/user_guide/data/atomic_files.html).

Tab separated; the header gives every column as ``name:type``. Titles come from the ``.item`` file
of the same name when it lies beside the ``.inter`` file.
"""

from __future__ import annotations

from pathlib import Path

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.table import (
    Schema,
    Table,
    check_header,
    read_lines,
    split_table,
    to_interactions,
)

TYPES = ("token", "token_seq", "float", "float_seq")


def read_inter(path: Path, source: str = "") -> Interactions:
    """Interactions of an ``.inter`` file with user_id, item_id and timestamp columns."""
    table = _read_atomic(path, ("user_id", "item_id", "timestamp"))
    titles = _titles(path.with_suffix(".item"))
    schema = Schema("user_id", "item_id", "timestamp", titles=titles)
    return to_interactions(table, schema, source or path.stem)


def _read_atomic(path: Path, required: tuple[str, ...]) -> Table:
    header, *body = read_lines(path)
    names = [_column_name(path, column) for column in header.split("\t")]
    check_header(path, names, required)
    return split_table(path, body, "\t", names, first_line=2)


def _column_name(path: Path, column: str) -> str:
    name, _, kind = column.partition(":")
    if kind not in TYPES:
        problem = f"the header field {column!r} is not name:type"
        fix = f"write name:type with one of the types {', '.join(TYPES)}, separated by tabs"
        raise MalformedFileError(path, 1, problem, fix)
    return name


def _titles(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    table = _read_atomic(path, ("item_id",))
    name = next((name for name in table.columns if "title" in name or "name" in name), None)
    if name is None:
        return {}
    return dict(zip(table.columns["item_id"], table.columns[name], strict=True))
