"""The command that keeps the pages of the results equal to the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.records import RecordStore
from experiments.tables import __main__ as command
from experiments.tables.pages import Part

NEWS = Part("page.md", "news", "main", lambda records: f"{len(list(records))} records")
OTHERS = Part("page.md", "others", "other", lambda records: f"{len(list(records))} others")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(command, "PARTS", (NEWS, OTHERS))
    RecordStore(tmp_path).append({"arm": "pfsr", "seed": 0})
    lines = ["before", NEWS.begin, "old", NEWS.end, "a negative result", OTHERS.begin, OTHERS.end]
    (tmp_path / "page.md").write_text("\n".join(lines) + "\n")
    return ["--records", str(tmp_path), "--pages", str(tmp_path)]


def test_only_what_is_between_the_markers_is_rewritten(tmp_path: Path, words: list[str]) -> None:
    assert command.main(words) == 0
    expected = (
        f"before\n{NEWS.begin}\n\n1 records\n\n{NEWS.end}\n"
        f"a negative result\n{OTHERS.begin}\n\n0 others\n\n{OTHERS.end}\n"
    )
    assert (tmp_path / "page.md").read_text() == expected
    assert command.main([*words, "--check"]) == 0


def test_check_names_what_is_stale_and_writes_nothing(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(words)
    RecordStore(tmp_path, "other").append({"arm": "pfsr", "seed": 0})
    before = (tmp_path / "page.md").read_text()
    capsys.readouterr()
    assert command.main([*words, "--check"]) == 1
    said = capsys.readouterr()
    assert said.out == "page.md: others: stale\n"
    assert "Fix: run python -m experiments.tables" in said.err
    assert (tmp_path / "page.md").read_text() == before


def test_a_page_without_its_markers_is_refused(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "page.md").write_text(f"{NEWS.end}\n{NEWS.begin}\n")
    with pytest.raises(ValueError, match="put them where it belongs"):
        command.main(words)
    assert (tmp_path / "page.md").read_text() == f"{NEWS.end}\n{NEWS.begin}\n"


def test_the_tables_of_one_collection_are_printed(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ranks = {"a": 1, "b": 200}
    store = RecordStore(tmp_path, "small")
    store.append(
        {
            "arm": "histories, central, sasrec reads 50",
            "seed": 0,
            "commit": "abc",
            "cpu_seconds": 60.0,
            "ranks": ranks,
            "lengths": {"a": 300, "b": 400},
        }
    )
    assert command.main([*words, "--print", "small"]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("Long histories.") and "| central | sasrec reads 50 | 1 | 0.5000 |" in said
    )
