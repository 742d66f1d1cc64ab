"""Any file of the user, read by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.delimited import find_role, read_delimited
from pfsr_core.data.readers.movielens import read_ratings_dat, read_u_data
from pfsr_core.data.readers.parquet import read_parquet
from pfsr_core.data.readers.recbole import read_inter
from pfsr_core.data.readers.s3rec import read_s3rec
from pfsr_core.data.readers.table import read_lines


def read_file(path: str) -> Interactions:
    """Interactions of the file at ``path``; raises DataError for an unknown suffix."""
    if not path:
        raise DataError("dataset 'file' has no path. Fix: give the path of a file to read.")
    file_path = Path(path).expanduser()
    reader = READERS.get(file_path.suffix.lower())
    if reader is None:
        known = ", ".join(READERS)
        raise DataError(f"{path}: unknown suffix {file_path.suffix!r}. Fix: use one of {known}.")
    return reader(file_path, file_path.stem)


def _read_csv(file_path: Path, source: str) -> Interactions:
    return read_delimited(file_path, ",", source)


def _read_tsv(file_path: Path, source: str) -> Interactions:
    return read_delimited(file_path, "\t", source)


def _read_txt(file_path: Path, source: str) -> Interactions:
    """A table separated by spaces when the first line names user and item, else S3-Rec."""
    header = read_lines(file_path)[0].split()
    has_header = find_role(header, "user") is not None and find_role(header, "item") is not None
    return read_delimited(file_path, " ", source) if has_header else read_s3rec(file_path, source)


READERS: dict[str, Callable[[Path, str], Interactions]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": read_parquet,
    ".inter": read_inter,
    ".data": read_u_data,
    ".dat": read_ratings_dat,
    ".txt": _read_txt,
}
