"""Readers of the three forms in which MovieLens is published (Harper and Konstan, 2015).

https://grouplens.org/datasets/movielens: ML-100K ``u.data``, ML-1M ``ratings.dat`` and the
``ratings.csv`` of the later sets. Titles and genres are taken from the file that lies beside the
ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pfsr_core.data.interactions import Interactions
from pfsr_core.data.readers.delimited import read_csv_table
from pfsr_core.data.readers.table import (
    Schema,
    check_header,
    read_lines,
    split_table,
    to_interactions,
)

RATING_FIELDS = ("user", "item", "rating", "timestamp")
# The flags that end a line of u.item, in the order of ML-100K's u.genre.
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)

Words = tuple[dict[str, str], dict[str, str]]
"""Titles, and texts of title and genres, by raw item id."""


def read_u_data(file_path: Path, source: str = "ml-100k") -> Interactions:
    """ML-100K: user, item, rating, seconds, separated by tabs; titles from ``u.item``."""
    words = _plain_words(file_path.with_name("u.item"), "|", _flagged_genres)
    return _read_plain(file_path, "\t", words, source)


def read_ratings_dat(file_path: Path, source: str = "ml-1m") -> Interactions:
    """ML-1M: user::item::rating::seconds; titles from ``movies.dat``."""
    words = _plain_words(file_path.with_name("movies.dat"), "::", _listed_genres)
    return _read_plain(file_path, "::", words, source)


def read_ratings_csv(file_path: Path, source: str = "ml-latest-small") -> Interactions:
    """ML-latest: a header, then userId,movieId,rating,timestamp; titles from ``movies.csv``."""
    table = read_csv_table(file_path, ",")
    check_header(file_path, list(table.columns), ("userId", "movieId", "timestamp"))
    titles, texts = _csv_words(file_path.with_name("movies.csv"))
    schema = Schema("userId", "movieId", "timestamp", positive_ids=True, titles=titles, texts=texts)
    return to_interactions(table, schema, source)


def _read_plain(file_path: Path, separator: str, words: Words, source: str) -> Interactions:
    table = split_table(file_path, read_lines(file_path), separator, RATING_FIELDS)
    titles, texts = words
    schema = Schema("user", "item", "timestamp", positive_ids=True, titles=titles, texts=texts)
    return to_interactions(table, schema, source)


def _plain_words(
    file_path: Path, separator: str, genres: Callable[[list[str]], Sequence[str]]
) -> Words:
    if not file_path.exists():
        return {}, {}
    # Both files are Latin-1, in which every byte is a letter.
    cell_rows = [line.split(separator) for line in read_lines(file_path, "latin-1")]
    cell_rows = [row for row in cell_rows if len(row) > 1]
    titles = {row[0]: row[1].strip() for row in cell_rows}
    return titles, {row[0]: _item_text(row[1], genres(row)) for row in cell_rows}


def _flagged_genres(row: list[str]) -> list[str]:
    """Genres of a line of u.item; none where the flags are missing."""
    flags = row[-len(GENRES) :]
    return [genre for genre, flag in zip(GENRES, flags, strict=False) if flag == "1"]


def _listed_genres(row: list[str]) -> list[str]:
    return row[2].split("|") if len(row) > 2 else []


def _item_text(title: str, genres: Sequence[str]) -> str:
    return " ".join([title.strip(), *genres])


def _csv_words(file_path: Path) -> Words:
    if not file_path.exists():
        return {}, {}
    table = read_csv_table(file_path, ",")
    check_header(file_path, list(table.columns), ("movieId", "title"))
    raw_ids, titles = table.columns["movieId"], table.columns["title"]
    genres = table.columns.get("genres", [""] * len(raw_ids))
    rows = zip(raw_ids, titles, genres, strict=True)
    texts = {raw_id: _item_text(title, listed.split("|")) for raw_id, title, listed in rows}
    return dict(zip(raw_ids, titles, strict=True)), texts
