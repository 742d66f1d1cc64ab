"""Public item vectors: what they are made from, the same everywhere, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from pfsr_core.data.errors import DataError, MalformedFileError
from pfsr_core.items.text_vectors import (
    HASHED,
    TF_IDF,
    WORDLLAMA,
    WORDLLAMA_DIMS,
    ItemVectors,
    item_vectors,
    words_of,
)
from tests.pfsr_core.data.helpers import write

IDS = ("7", "a b", "9", "x")
TEXTS = (
    "Alien 1979 Horror Sci-Fi",
    "Aliens 1986 Horror Sci-Fi",
    "Amélie 2001 Comedy Romance",
    "Heat 1995 Romance Comedy",
)
DIM = 8


def made(source: str, texts: tuple[str, ...] = TEXTS, ids: tuple[str, ...] = IDS) -> ItemVectors:
    return item_vectors(source, ids, texts, DIM)


@pytest.mark.parametrize("source", [TF_IDF, HASHED])
def test_items_with_words_in_common_are_near(source: str) -> None:
    rows = made(source).rows
    assert rows.shape == (4, DIM) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    near = rows @ rows.T
    assert near[0, 1] > near[0, 2] and near[2, 3] > near[1, 3]


def test_words() -> None:
    assert words_of("Children's Sci-Fi 1979, Amélie") == [
        *("children's", "sci-fi", "1979", "1970s", "amélie")
    ]
    assert words_of("Movie 4021") == ["movie", "4021"]


@pytest.mark.parametrize("source", [TF_IDF, HASHED])
def test_another_process_makes_the_same_numbers(source: str) -> None:
    code = (
        "import sys\nfrom tests.pfsr_core.items.test_text_vectors import made\n"
        f"sys.stdout.buffer.write(made({source!r}).rows.tobytes())"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert done.stdout == made(source).rows.tobytes()


def test_a_hashed_vector_is_the_same_in_another_catalogue() -> None:
    few = made(HASHED, TEXTS[1:3], IDS[1:3])
    assert np.array_equal(few.rows, made(HASHED).rows[1:3])
    assert few.method == made(HASHED).method and few.digest != made(HASHED).digest


def test_the_digest_names_texts_items_and_method() -> None:
    changed = ("Alien 1980 Horror Sci-Fi", *TEXTS[1:])
    digests = {
        made(TF_IDF).digest,
        made(HASHED).digest,
        made(TF_IDF, changed).digest,
        made(TF_IDF, ids=("8", *IDS[1:])).digest,
        item_vectors(TF_IDF, IDS, TEXTS, 4).digest,
    }
    assert len(digests) == 5
    assert made(TF_IDF).digest == made(TF_IDF).digest


def test_an_item_without_words_has_no_direction() -> None:
    for source in (TF_IDF, HASHED):
        assert not made(source, ("", *TEXTS[1:])).rows[0].any()


def test_words_that_no_two_items_share() -> None:
    assert not made(TF_IDF, ("one", "two", "three", "four")).rows.any()


def npz(path: Path, ids: object, vectors: object) -> Path:
    np.savez(path, ids=np.array(ids), vectors=np.array(vectors, np.float32))
    return path


def test_files_by_raw_item_id(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, DIM)).astype(np.float32)
    ids = ["x", "9", "unknown", "a b", "7"]
    lines = [",".join([raw, *map(str, row)]) for raw, row in zip(ids, rows, strict=True)]
    header = ",".join(["id", *(f"v{i}" for i in range(DIM))])
    table = write(tmp_path / "v.csv", "\n".join([header, *lines]) + "\n")
    for path in (npz(tmp_path / "v.npz", ids, rows), table):
        found = made(str(path), texts=("",) * 4).rows
        expected = rows[[4, 3, 1, 0]]
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sentences_are_a_models_rows_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is stood in for: which model is asked, for which texts, and how wide it is."""
    asked: list[tuple[str, str, list[str]]] = []

    class Model:
        def __init__(self, name: str, device: str) -> None:
            self.name, self.device = name, device

        def encode(self, texts: list[str], *, convert_to_numpy: bool) -> np.ndarray:
            assert convert_to_numpy
            asked.append((self.name, self.device, texts))
            return 3.0 * np.eye(len(texts), DIM)

    library = types.ModuleType("sentence_transformers")
    library.SentenceTransformer = Model
    monkeypatch.setitem(sys.modules, library.__name__, library)
    found = made("sentence:tiny")
    assert asked == [("tiny", "cpu", list(TEXTS))]
    np.testing.assert_array_equal(found.rows, np.eye(4, DIM, dtype=np.float32))
    assert found.method == f"sentence:tiny, {DIM}" != made("sentence:other").method
    wordless = made("sentence:tiny", ("", *TEXTS[1:])).rows
    assert not wordless[0].any() and wordless[1:].any(1).all()
    with pytest.raises(DataError, match=r"tiny has vectors of 8 numbers.*text-dim = 8"):
        item_vectors("sentence:tiny", IDS, TEXTS, 64)


@pytest.mark.parametrize("dim", WORDLLAMA_DIMS)
def test_a_language_models_vectors_know_what_words_mean(dim: int) -> None:
    """No word is shared by the first and the second, or the third and the fourth."""
    texts = ("a spaceship among the stars", "astronauts leave their orbit", "", "a love story")
    found = item_vectors(WORDLLAMA, IDS, (*texts[:2], "romance and a wedding", texts[3]), dim).rows
    assert found.shape == (4, dim) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    near = found @ found.T
    assert near[0, 1] > max(near[0, 2], near[0, 3]) and near[2, 3] > max(near[2, 0], near[2, 1])
    wordless = item_vectors(WORDLLAMA, IDS, texts, dim).rows
    assert not wordless[2].any()
    few = item_vectors(WORDLLAMA, IDS[:2], texts[:2], dim)  # the same on nodes of their own
    np.testing.assert_allclose(few.rows, found[:2], atol=1e-6)
    assert few.method == f"wordllama {version('wordllama')}, {dim}"


def test_a_language_models_widths() -> None:
    with pytest.raises(DataError, match=r"text-dim is 8.*64, 128 or 256 numbers\. Fix: choose"):
        made(WORDLLAMA)


def test_another_file_has_another_digest(tmp_path: Path) -> None:
    one = made(str(npz(tmp_path / "a.npz", IDS, np.ones((4, DIM)))))
    other = made(str(npz(tmp_path / "b.npz", IDS, np.eye(4, DIM))))
    assert one.digest != other.digest and one.method != other.method


def test_what_is_refused_names_the_place_and_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="no titles.*Fix: give the data a column title"):
        made(TF_IDF, ("",) * 4)
    with pytest.raises(DataError, match=r"neither a file .*\.npz.* nor one of tf-idf, hashed"):
        made("tfidf")
    with pytest.raises(DataError, match="sentence-transformers.*Fix: pip install"):
        made("sentence:all-MiniLM-L6-v2")
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(DataError, match=r"needs wordllama\. Fix: pip install 'pfsr\[wordllama\]'"):
        made(WORDLLAMA)
    with pytest.raises(DataError, match=r"no vector of 2 items, among them 9, x\. Fix"):
        made(str(npz(tmp_path / "few.npz", IDS[:2], np.ones((2, DIM)))))
    with pytest.raises(DataError, match=r"3 numbers, model\.text-dim is 8.*text-dim = 3"):
        made(str(npz(tmp_path / "narrow.npz", IDS, np.ones((4, 3)))))
    with pytest.raises(MalformedFileError, match="ids and vectors"):
        made(str(npz(tmp_path / "nan.npz", IDS, np.full((4, DIM), np.nan))))
    with pytest.raises(MalformedFileError, match=r"not ids and vectors.*Fix: np\.savez"):
        made(str(write(tmp_path / "text.npz", "hello")))
    with pytest.raises(MalformedFileError, match=r"line 3: .* are not all numbers"):
        made(str(write(tmp_path / "v.csv", "id,a\n7,1\n9,one\n")))
    with pytest.raises(DataError, match="is not available"):
        made(str(tmp_path / "missing.npz"))


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_number_that_is_none_is_refused_in_a_table_too(tmp_path: Path, number: str) -> None:
    with pytest.raises(MalformedFileError, match=r"line 3: .* are not all numbers"):
        made(str(write(tmp_path / "v.csv", f"id,a\n7,1\n9,{number}\n")))


def test_two_vectors_of_one_item_are_refused(tmp_path: Path) -> None:
    rows = np.ones((5, DIM))
    with pytest.raises(MalformedFileError, match="item '7' has two vectors"):
        made(str(npz(tmp_path / "v.npz", (*IDS, "7"), rows)))
    with pytest.raises(MalformedFileError, match="item '7' has two vectors"):
        lines = [",".join([raw, *["1"] * DIM]) for raw in (*IDS, "7")]
        header = ",".join(["id", *(f"v{i}" for i in range(DIM))])
        made(str(write(tmp_path / "v.csv", "\n".join([header, *lines]) + "\n")))


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    whole = npz(tmp_path / "whole.npz", IDS, np.ones((4, DIM))).read_bytes()
    one = tmp_path / "array.npy"
    np.save(one, np.ones((4, DIM)))
    for content in (b"", whole[: len(whole) // 2], one.read_bytes()):
        path = tmp_path / "v.npz"
        path.write_bytes(content)
        with pytest.raises(MalformedFileError, match=r"not ids and vectors.*Fix: np\.savez"):
            made(str(path))
    with pytest.raises(MalformedFileError, match=r"1 ids and vectors of shape"):
        made(str(npz(tmp_path / "one.npz", "7", np.ones((1, DIM)))))
