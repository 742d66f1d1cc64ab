"""Markets in files of their own: one log, users apart, items together, faults with their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.errors import DataUnavailableError, MalformedFileError
from pfsr_core.data.splits import leave_one_out
from tests.pfsr_core.data.helpers import rows_of, write

HEADER = "userId itemId rate date\n"
DAY = 86_400.0


def two_markets(place: Path) -> Path:
    write(place / "uk_5core.txt", HEADER + "A b 5.0 1970-01-02\nA c 4.0 1970-01-02\n")
    write(place / "ca_5core.txt", HEADER + "A c 1.0 1970-01-03\nB a 2.0 1970-01-01\n")
    return place


def test_users_are_told_apart_and_items_are_not(tmp_path: Path) -> None:
    log = load_dataset("xmarket", str(two_markets(tmp_path)))
    assert rows_of(log) == [
        ("ca/A", "c", 2 * DAY),
        ("ca/B", "a", 0.0),
        ("uk/A", "b", DAY),
        ("uk/A", "c", DAY),
    ]
    assert log.item_ids == ("c", "a", "b")
    assert log.columns["market"].tolist() == ["ca", "ca", "uk", "uk"]
    assert log.columns["rate"].tolist() == ["1.0", "2.0", "5.0", "4.0"]


def test_one_file_is_one_market(tmp_path: Path) -> None:
    log = load_dataset("xmarket", str(two_markets(tmp_path) / "uk_5core.txt"))
    assert log.user_ids == ("uk/A",)
    assert set(log.columns["market"].tolist()) == {"uk"}


def test_within_a_day_the_line_decides(tmp_path: Path) -> None:
    lines = [f"A {item} 5.0 2016-01-0{day}" for item, day in zip("dcba", "2121", strict=True)]
    write(tmp_path / "in_5core.txt", HEADER + "\n".join(lines))
    split = leave_one_out(load_dataset("xmarket", str(tmp_path)))
    user = split.users[0]
    assert [split.item_ids[code - 1] for code in user.all_items] == ["c", "a", "d", "b"]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("A b 5.0\n", 2, "3 fields where 4 are expected"),
        ("A b 5.0 2016-01-02\nA c 5.0 2016-13-02\n", 3, "'2016-13-02' is not"),
        ("", 1, "no line of data"),
    ],
)
def test_faults_have_their_place(text: str, line: int, problem: str, tmp_path: Path) -> None:
    two_markets(tmp_path)
    write(tmp_path / "uk_5core.txt", HEADER + text)
    with pytest.raises(MalformedFileError, match=problem) as caught:
        load_dataset("xmarket", str(tmp_path))
    assert (caught.value.path.name, caught.value.line) == ("uk_5core.txt", line)


def test_a_header_without_its_columns_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "uk_5core.txt", "userId rate date\nA 5.0 2016-01-02\n")
    with pytest.raises(MalformedFileError, match="no column for the item"):
        load_dataset("xmarket", str(tmp_path))


@pytest.mark.parametrize("path", ["", "none", ".", "a.txt"])
def test_without_a_market_it_says_what_to_give(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.txt", HEADER)
    with pytest.raises(DataUnavailableError, match="give a directory with <market>_5core.txt"):
        load_dataset("xmarket", path)
