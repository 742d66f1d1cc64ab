"""Readers of the three forms in which MovieLens is published (Harper and Konstan, 2015).

https://grouplens.org/datasets/movielens: ML-100K ``u.data``, ML-1M ``ratings.dat`` and the
``ratings.csv`` of the later sets. Titles are taken from the file that lies beside the ratings.
"""

from __future__ import annotations

from pathlib import Path

from pfsr_core.data.delimited import read_csv_table
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.table import Schema, check_header, read_lines, split_table, to_interactions

RATING_FIELDS = ("user", "item", "rating", "timestamp")


def read_u_data(path: Path, source: str = "ml-100k") -> Interactions:
    """ML-100K: user, item, rating, seconds, separated by tabs; titles from ``u.item``."""
    titles = _plain_titles(path.with_name("u.item"), "|")
    return _read_plain(path, "\t", titles, source)


def read_ratings_dat(path: Path, source: str = "ml-1m") -> Interactions:
    """ML-1M: user::item::rating::seconds; titles from ``movies.dat``."""
    titles = _plain_titles(path.with_name("movies.dat"), "::")
    return _read_plain(path, "::", titles, source)


def read_ratings_csv(path: Path, source: str = "ml-latest-small") -> Interactions:
    """ML-latest: a header, then userId,movieId,rating,timestamp; titles from ``movies.csv``."""
    table = read_csv_table(path, ",")
    check_header(path, list(table.columns), ("userId", "movieId", "timestamp"))
    titles = _csv_titles(path.with_name("movies.csv"))
    schema = Schema("userId", "movieId", "timestamp", positive_ids=True, titles=titles)
    return to_interactions(table, schema, source)


def _read_plain(path: Path, separator: str, titles: dict[str, str], source: str) -> Interactions:
    table = split_table(path, read_lines(path), separator, RATING_FIELDS)
    schema = Schema("user", "item", "timestamp", positive_ids=True, titles=titles)
    return to_interactions(table, schema, source)


def _plain_titles(path: Path, separator: str) -> dict[str, str]:
    if not path.exists():
        return {}
    # Both files are Latin-1, in which every byte is a letter.
    fields = (line.split(separator) for line in read_lines(path, "latin-1"))
    return {row[0]: row[1].strip() for row in fields if len(row) > 1}


def _csv_titles(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    table = read_csv_table(path, ",")
    check_header(path, list(table.columns), ("movieId", "title"))
    return dict(zip(table.columns["movieId"], table.columns["title"], strict=True))
