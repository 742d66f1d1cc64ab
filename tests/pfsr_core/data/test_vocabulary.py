"""What is saved comes back, and what was changed is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.data.errors import DataUnavailableError, MalformedFileError
from pfsr_core.data.vocabulary import load_vocabulary, save_vocabulary, vocabulary_digest

IDS = ("007", "7", "Café", "")


def test_it_comes_back(tmp_path: Path) -> None:
    digest = save_vocabulary(tmp_path / "model", IDS, {"7": "Léon"})
    loaded = load_vocabulary(tmp_path / "model")
    assert (loaded.item_ids, loaded.titles, loaded.digest) == (IDS, {"7": "Léon"}, digest)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["vocabulary.json"]


@given(*[st.lists(st.sampled_from(["", "a", "b", "ab", ',"']), max_size=3)] * 2)
def test_the_digest_tells_lists_apart(first: list[str], second: list[str]) -> None:
    assert (vocabulary_digest(first) == vocabulary_digest(second)) == (first == second)


def test_the_digest_stays_the_same_over_time() -> None:
    assert vocabulary_digest(["a", "b"]) == (
        "3554d2b8a1e34099053865de8576d1460b807430ec8c6b85315c9607ba93d308"
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"item_ids": ["7", "007", "Café", ""]}, "do not match their digest"),
        ({"item_ids": [7]}, "not as saved"),
        ({"item_ids": None}, "not as saved"),
        ({"titles": []}, "not as saved"),
        ({"digest": ""}, "do not match their digest"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    save_vocabulary(tmp_path, IDS)
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}))
    with pytest.raises(MalformedFileError, match=f"{problem}.*Fix: restore"):
        load_vocabulary(tmp_path)


@pytest.mark.parametrize(("text", "line"), [('{"digest": "a",\n', 2), ("[]", None), ("{}", None)])
def test_a_file_cut_off_is_refused(tmp_path: Path, text: str, line: int | None) -> None:
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(MalformedFileError) as caught:
        load_vocabulary(tmp_path)
    assert caught.value.line == line


def test_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailableError, match=r"vocabulary\.json: No such file"):
        load_vocabulary(tmp_path)
