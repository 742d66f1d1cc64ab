"""Reader of RecBole's atomic files (https://recbole.io/docs/user_guide/data/atomic_files.html).

Tab separated; the header gives every column as ``name:type``. Titles and texts come from the
``.item`` file of the same name when it lies beside the ``.inter`` file.
"""

from __future__ import annotations

from pathlib import Path

from pfsr_core.data.errors import MalformedFileError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.table import (
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
    titles, texts = _item_words(path.with_suffix(".item"))
    schema = Schema("user_id", "item_id", "timestamp", titles=titles, texts=texts)
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


def _item_words(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Titles, and texts of every further column, by raw item id."""
    if not path.exists():
        return {}, {}
    table = _read_atomic(path, ("item_id",))
    ids = table.columns["item_id"]
    words = {name: cells for name, cells in table.columns.items() if name != "item_id"}
    texts = {raw: " ".join(cells) for raw, *cells in zip(ids, *words.values(), strict=True)}
    name = next((name for name in words if "title" in name or "name" in name), None)
    titles = {} if name is None else dict(zip(ids, words[name], strict=True))
    return titles, texts
