"""Broken files are refused with the file, the line an editor shows, and the fix."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pfsr_core.data.errors import DataError, DataUnavailableError, MalformedFileError
from pfsr_core.data.readers.files import READERS, read_file
from pfsr_core.data.readers.movielens import read_ratings_csv
from tests.pfsr_core.data.helpers import write

CSV = "user,item,timestamp\n"
INTER = "user_id:token\titem_id:token\ttimestamp:float\n"

BROKEN = [
    ("missing column", "a.csv", "user,item\nu,a\n", 1, "no column for the timestamp"),
    ("missing header", "a.csv", "7,a,1\n7,b,2\n", 1, "no column for the user"),
    ("too few fields", "a.csv", CSV + "u,a,1\nu,b\n", 3, "2 fields where 3"),
    ("too many fields", "a.tsv", "user\titem\tts\nu\ta\t1\tx\n", 2, "4 fields where 3"),
    ("blank line inside", "a.csv", CSV + "u,a,1\n\nu,b,2\n", 3, "0 fields where 3"),
    ("text for a timestamp", "a.csv", CSV + "u,a,1\nu,b,soon\n", 3, "'soon' is not"),
    ("digits grouped by _", "a.csv", CSV + "u,a,1\nu,b,1_0\n", 3, "'1_0' is not"),
    ("NaN timestamp", "a.csv", CSV + "u,a,1\nu,b,2\nu,c,nan\n", 4, "'nan' is not"),
    ("infinite timestamp", "a.csv", CSV + "u,a,inf\n", 2, "'inf' is not"),
    ("empty timestamp", "a.csv", CSV + "u,a,1\nu,b,\n", 3, "'' is not"),
    ("date that is none", "a.csv", CSV + "u,a,2020-01-01\nu,b,2020-13-01\n", 3, "2020-13-01"),
    ("dates and seconds mixed", "a.csv", CSV + "u,a,1\nu,b,2020-01-01\n", 3, "2020-01-01"),
    ("empty user id", "a.csv", CSV + "u,a,1\n,b,2\n", 3, "user is empty"),
    ("user id NaN", "a.csv", CSV + "u,a,1\nnan,b,2\n", 3, "user is 'nan', which stands for"),
    ("item id missing", "a.csv", CSV + "u,a,1\nu,<NA>,2\n", 3, "item is '<NA>', which stands for"),
    ("blank item id", "a.csv", CSV + "u,  ,1\n", 2, "item is empty"),
    ("empty file", "a.csv", "", 1, "empty"),
    ("empty sequence file", "a.txt", "\n\n", 1, "empty"),
    ("header only", "a.csv", CSV, 1, "no line of data"),
    ("header only, RecBole", "a.inter", INTER, 1, "no line of data"),
    ("wrong delimiter", "a.csv", "user;item;timestamp\nu;a;1\n", 1, "separated by ';'"),
    ("wrong delimiter, u.data", "u.data", "1\t2\t3\t4\n1,2,3,4\n", 2, "1 fields where 4"),
    ("wrong delimiter, dat", "r.dat", "1\t2\t3\t4\n", 1, "1 fields where 4"),
    ("column named twice", "a.csv", "user,item,item,ts\nu,a,b,1\n", 1, "'item' twice"),
    ("column named twice, RecBole", "a.inter", INTER[:-1] + "\titem_id:token\n", 1, "twice"),
    ("user without items", "a.txt", "1 2 3\n2\n", 2, "a user without items"),
    ("blank line in sequences", "a.txt", "1 2\n\n2 3\n", 2, "line is empty"),
    ("user in two lines", "a.txt", "1 2\n2 3\n1 4\n", 3, "in line 1"),
    ("padding as an item", "a.txt", "1 2 3\n2 5 0\n", 2, "'0' is not a whole number"),
    ("negative item", "u.data", "1\t2\t3\t4\n1\t-2\t3\t4\n", 2, "'-2' is not a whole number"),
    ("item in words", "r.dat", "1::2::3::4\n1::x::3::4\n", 2, "'x' is not a whole number"),
    ("header without types", "a.inter", "user_id\titem_id\ttimestamp\nu\ta\t1\n", 1, "name:type"),
    ("unknown type", "a.inter", INTER.replace("float", "int") + "u\ta\t1\n", 1, "name:type"),
    ("missing column, RecBole", "a.inter", "user_id:token\titem_id:token\nu\ta\n", 1, "timestamp"),
    ("unbalanced quotes", "a.csv", CSV + 'u,a,1\nu,"b,2\nu,c,3\n', 3, "quotes do not match"),
    ("text after a quote", "a.csv", CSV + 'u,a,1\nu,"b"x,2\n', 3, "quotes do not match"),
]


@pytest.mark.parametrize(
    ("name", "text", "line", "problem"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_refused_with_place_and_fix(
    tmp_path: Path, name: str, text: str, line: int, problem: str
) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(MalformedFileError) as caught:
        read_file(str(path))
    assert (caught.value.path, caught.value.line) == (path, line)
    assert problem in caught.value.problem
    assert len(caught.value.fix) > 10
    assert str(caught.value).startswith(f"{path}, line {line}: ")


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "u.data", "a.inter"])
def test_bytes_that_are_not_utf8(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"first\nsecond\nL\xe9on\n")
    with pytest.raises(MalformedFileError, match="line 3: byte 0xe9 is not UTF-8"):
        read_file(str(path))


def test_lines_are_counted_through_quoted_line_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", CSV + 'u,"a\nb",1\nu,c,soon\n')
    with pytest.raises(MalformedFileError) as caught:
        read_file(str(path))
    assert caught.value.line == 4


def test_lines_are_counted_as_editors_do_with_odd_characters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.inter", INTER + "u\ta\x0bb\u2028c\t1\r\nu\tb\tsoon\r\n")
    with pytest.raises(MalformedFileError) as caught:
        read_file(str(path))
    assert caught.value.line == 3


def test_truncated_parquet(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"user": ["u"], "item": ["a"], "ts": [1]}), whole)
    path = tmp_path / "a.parquet"
    path.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(MalformedFileError, match="not a complete Parquet file") as caught:
        read_file(str(path))
    assert caught.value.line is None


@pytest.mark.parametrize(
    ("columns", "row", "problem"),
    [
        ({"user": ["u", None], "item": ["a", "b"], "ts": [1, 2]}, 2, "user is missing"),
        ({"user": ["u", "u"], "item": ["a", "b"], "ts": [1.0, float("inf")]}, 2, "'inf' is not"),
        ({"user": ["u", "u"], "item": [1.0, 2.0], "ts": [1, 2]}, None, "stored as double"),
        (
            {"user": ["u"], "item": [["a"]], "ts": [1]},
            None,
            "cells of column 'item' are of type list",
        ),
        ({"user": ["u"], "item": ["a"]}, 1, "no column for the timestamp"),
        ({"user": [], "item": [], "ts": []}, None, "no rows"),
    ],
)
def test_parquet_faults(
    tmp_path: Path, columns: dict[str, list[object]], row: int | None, problem: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(MalformedFileError) as caught:
        read_file(str(path))
    assert caught.value.line == row
    assert problem in caught.value.problem


def test_movielens_csv_wants_its_own_header(tmp_path: Path) -> None:
    path = write(tmp_path / "ratings.csv", "user,movieId,rating,timestamp\n1,2,3,4\n")
    with pytest.raises(MalformedFileError, match="line 1: there is no column 'userId'"):
        read_ratings_csv(path)


@pytest.mark.parametrize("suffix", list(READERS))
def test_a_file_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataUnavailableError, match=r"No such file.*\nFix: check the path"):
        read_file(str(tmp_path / f"none{suffix}"))


@pytest.mark.parametrize("path", ["", "log.xlsx", "log"])
def test_file_needs_a_known_suffix(path: str) -> None:
    with pytest.raises(DataError, match="Fix: "):
        read_file(path)
