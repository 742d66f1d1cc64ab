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


def read_inter(file_path: Path, source: str = "") -> Interactions:
    """Interactions of an ``.inter`` file with user_id, item_id and timestamp columns."""
    table = _read_atomic(file_path, ("user_id", "item_id", "timestamp"))
    titles, texts = _item_words(file_path.with_suffix(".item"))
    schema = Schema("user_id", "item_id", "timestamp", titles=titles, texts=texts)
    return to_interactions(table, schema, source or file_path.stem)


def _read_atomic(file_path: Path, required_names: tuple[str, ...]) -> Table:
    header, *body = read_lines(file_path)
    column_names = [_column_name(file_path, column) for column in header.split("\t")]
    check_header(file_path, column_names, required_names)
    return split_table(file_path, body, "\t", column_names, first_line=2)


def _column_name(file_path: Path, header_field: str) -> str:
    column_name, _, column_type = header_field.partition(":")
    if column_type not in TYPES:
        problem = f"the header field {header_field!r} is not name:type"
        fix = f"write name:type with one of the types {', '.join(TYPES)}, separated by tabs"
        raise MalformedFileError(file_path, 1, problem, fix)
    return column_name


def _item_words(file_path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Titles, and texts of every further column, by raw item id."""
    if not file_path.exists():
        return {}, {}
    table = _read_atomic(file_path, ("item_id",))
    ids = table.columns["item_id"]
    words = {name: cells for name, cells in table.columns.items() if name != "item_id"}
    texts = {raw: " ".join(cells) for raw, *cells in zip(ids, *words.values(), strict=True)}
    name = next((name for name in words if "title" in name or "name" in name), None)
    titles = {} if name is None else dict(zip(ids, words[name], strict=True))
    return titles, texts
