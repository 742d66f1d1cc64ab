"""Every reader on a file small enough to check by eye."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pfsr_core.data.filters import select_rows
from pfsr_core.data.readers.delimited import read_delimited
from pfsr_core.data.readers.files import read_file
from pfsr_core.data.readers.movielens import read_ratings_csv, read_ratings_dat, read_u_data
from pfsr_core.data.readers.parquet import read_parquet
from pfsr_core.data.readers.recbole import read_inter
from pfsr_core.data.readers.s3rec import read_s3rec
from tests.pfsr_core.data.helpers import rows_of, write

ROWS = [("7", "30", 5.0), ("8", "20", 6.0), ("7", "20", 4.0)]


def test_u_data(tmp_path: Path) -> None:
    path = write(tmp_path / "u.data", "7\t30\t3\t5\n8\t20\t4\t6\n7\t20\t1\t4\n")
    flags = "|".join(["0", "1", *"0" * 16, "1"])
    (tmp_path / "u.item").write_bytes(
        f"20|Léon|1994\n30|Heat|1995|{flags}\n99|Unseen|1\n".encode("latin-1")
    )
    log = read_u_data(path)
    assert log.texts == {"20": "Léon", "30": "Heat Action Western"}
    assert rows_of(log) == ROWS
    assert log.user_ids == ("7", "8")
    assert log.item_ids == ("30", "20")
    assert log.items.tolist() == [1, 2, 2]
    assert log.titles == {"20": "Léon", "30": "Heat"}
    assert log.columns["rating"].tolist() == ["3", "4", "1"]
    assert log.source == "ml-100k"


def test_ratings_dat(tmp_path: Path) -> None:
    path = write(tmp_path / "ratings.dat", "7::30::3::5\n8::20::4::6\n7::20::1::4\n")
    write(tmp_path / "movies.dat", "30::Heat (1995)::Action|Crime\n")
    log = read_ratings_dat(path)
    assert rows_of(log) == ROWS
    assert log.titles == {"30": "Heat (1995)"}
    assert log.texts == {"30": "Heat (1995) Action Crime"}


def test_ratings_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path / "ratings.csv",
        "userId,movieId,rating,timestamp\n7,30,3.0,5\n8,20,4,6\n7,20,1,4\n",
    )
    write(tmp_path / "movies.csv", 'movieId,title,genres\n20,"Mask, The",Comedy\n')
    log = read_ratings_csv(path)
    assert rows_of(log) == ROWS
    assert log.titles == {"20": "Mask, The"}
    assert log.texts == {"20": "Mask, The Comedy"}


def test_inter(tmp_path: Path) -> None:
    header = "user_id:token\titem_id:token\ttimestamp:float\tmarket:token\n"
    path = write(tmp_path / "shop.inter", header + "007\ta b\t5\tde\n8\tc\t6\tfr\n")
    write(
        tmp_path / "shop.item",
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\nc\tHeat\tCrime\n",
    )
    log = read_inter(path)
    assert rows_of(log) == [("007", "a b", 5.0), ("8", "c", 6.0)]
    assert log.titles == {"c": "Heat"}
    assert log.texts == {"c": "Heat Crime"}
    assert log.columns["market"].tolist() == ["de", "fr"]
    assert log.source == "shop"


@pytest.mark.parametrize(
    "header", ["user,item,timestamp", "userId,movieId,ts", "uid,sid,time", "User_ID,Item-ID,Date"]
)
def test_header_aliases(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "log.csv", f"{header}\n007,x,5\n7,y,6.5\n")
    assert rows_of(read_delimited(path, ",")) == [("007", "x", 5.0), ("7", "y", 6.5)]


def test_columns_in_any_order_with_quotes_bom_and_windows_line_ends(tmp_path: Path) -> None:
    text = '\ufefftimestamp,market,item,user\r\n5,de,"a ""b"", c",u\r\n6,fr,d,v\r\n\r\n'
    log = read_delimited(write(tmp_path / "log.csv", text), ",")
    assert rows_of(log) == [("u", 'a "b", c', 5.0), ("v", "d", 6.0)]
    assert log.columns["market"].tolist() == ["de", "fr"]


def test_iso_dates_become_seconds(tmp_path: Path) -> None:
    text = (
        "user,item,date\nu,a,1970-01-02\nu,b,1970-01-01T00:00:01Z\nu,c,1970-01-01T01:00:00+01:00\n"
    )
    log = read_delimited(write(tmp_path / "log.csv", text), ",")
    assert log.timestamps.tolist() == [86_400.0, 1.0, 0.0]


def test_title_column_gives_titles_and_long_texts_are_left_out(tmp_path: Path) -> None:
    text = f"user,item,ts,title,review\nu,a,1,Heat,{'x' * 300}\nu,b,2,,short\n"
    log = read_delimited(write(tmp_path / "log.csv", text), ",")
    assert log.titles == {"a": "Heat"}
    assert set(log.columns) == {"title"}


def test_s3rec_positions_are_times(tmp_path: Path) -> None:
    log = read_s3rec(write(tmp_path / "seq.txt", "1 4 2 4\n2 9\n"))
    assert rows_of(log) == [("1", "4", 0.0), ("1", "2", 1.0), ("1", "4", 2.0), ("2", "9", 0.0)]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([5, 6], [5.0, 6.0]),
        ([0.5, 6.25], [0.5, 6.25]),
        (["1970-01-02", "1970-01-01"], [86_400.0, 0.0]),
        ([date(1970, 1, 2), date(1970, 1, 1)], [86_400.0, 0.0]),
        ([datetime(1970, 1, 1, 0, 0, 1, 500_000), datetime(1970, 1, 1)], [1.5, 0.0]),
        ([datetime(1970, 1, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)], [3600.0, 0.0]),
    ],
)
def test_parquet(tmp_path: Path, times: list[object], expected: list[float]) -> None:
    path = tmp_path / "log.parquet"
    table = pa.table({"userId": [7, 8], "sid": ["007", "b"], "ts": times, "market": ["de", None]})
    pq.write_table(table, path)
    log = read_parquet(path)
    assert log.user_ids == ("7", "8")
    assert log.item_ids == ("007", "b")
    assert log.timestamps.tolist() == expected
    assert log.columns["market"].tolist() == ["de", ""]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user,item,ts\nu,a,1\n"),
        ("a.tsv", "user\titem\tts\nu\ta\t1\n"),
        ("a.TXT", "user item ts\nu a 1\n"),
        ("a.inter", "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\n"),
        ("a.data", "1\t2\t3\t1\n"),
        ("a.dat", "1::2::3::1\n"),
        ("a.txt", "1 2\n"),
    ],
)
def test_the_suffix_chooses_the_reader(tmp_path: Path, name: str, text: str) -> None:
    log = read_file(str(write(tmp_path / name, text)))
    assert (len(log), log.source) == (1, "a")


def test_words_about_items_come_from_every_column_that_has_some(tmp_path: Path) -> None:
    text = "user,item,time,Genres,Title,category\n1,a,1,Crime,Heat,\n1,b,2,,,Film\n2,c,3,,,\n"
    log = read_delimited(write(tmp_path / "log.csv", text), ",")
    assert log.texts == {"a": "Heat Crime", "b": "Film"}
    assert select_rows(log, np.array([False, True, True])).texts == {"b": "Film"}
