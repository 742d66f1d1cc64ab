"""Vectors of items, of words about them where there are any: what "semantic" is made from.

Four sources need nothing but the texts of the data (title, genres, categories):

    "tf-idf"            TF-IDF of the words, cut to ``dim`` by a singular value decomposition. The
                        fit is over the whole catalogue, so every node must have the same texts.
    "hashed"            every word has a random direction that follows from the word alone (random
                        indexing, Kanerva et al. 2000): the same on nodes with different catalogues.
    "wordllama"         WordLlama, a small model of sentences that comes with its package: means of
                        token vectors that were a language model's (64, 128 or 256 numbers).
    "sentence:<model>"  embeddings of sentence-transformers.

Where the data have no texts there is one that is collaborative, not semantic, and that is made by
pooling what all clients counted, so that no node with data of its own takes it:

    "co-occurrence"     of the training histories (:mod:`pfsr_core.items.co_occurrence`).

Any other name is a file of the user, by raw item id: ``.npz`` with the arrays ``ids`` (n,) and
``vectors`` (n, dim), or ``.csv`` with a header and a line ``id,number,...`` for each item.

Rows have length 1; an item without words has a row of zeros.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.data.errors import DataError, MalformedFileError
from pfsr_core.data.readers.delimited import read_csv_table
from pfsr_core.data.readers.table import read_bytes
from pfsr_core.items.co_occurrence import co_occurrence_vectors

TF_IDF, HASHED, WORDLLAMA, SENTENCE = "tf-idf", "hashed", "wordllama", "sentence:"
CO_OCCURRENCE = "co-occurrence"
WORDLLAMA_DIMS = (64, 128, 256)
COLLABORATIVE = (
    "Item vectors are co-occurrence: collaborative, not semantic, made by pooling the training "
    "histories of all clients. For simulation and experiments only."
)
WORDS = re.compile(r"\w+(?:['-]\w+)*")
YEAR = re.compile(r"(1[89]|20)\d\d")

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ItemVectors:
    """``rows`` (V, dim), row i that of the i-th item id.

    ``digest`` names all they were made from; ``method`` leaves out the texts of the catalogue, as
    nodes with catalogues of their own must agree on no more.
    """

    rows: Vectors
    digest: str
    method: str


def item_vectors(
    source: str,
    item_ids: Sequence[str],
    texts: Sequence[str],
    dim: int,
    histories: Sequence[ItemArray] = (),
) -> ItemVectors:
    """Vectors of the items from ``source``; raises DataError when they cannot be made.

    ``texts``: words about each item, "" where none are known. ``histories``: training histories of
    all clients, which "co-occurrence" alone looks at.
    """
    made_from = [list(texts)]
    if source == TF_IDF:
        rows, method = tf_idf(_known(texts, source), dim), source
    elif source == HASHED:
        rows, method = hashed(_known(texts, source), dim), source
    elif source == WORDLLAMA:
        rows = wordllama(_known(texts, source), dim)
        method = f"{source} {version(source)}"  # whose weights come with it
    elif source.startswith(SENTENCE):
        rows, method = _sentences(source, _known(texts, source), dim), source
    elif source == CO_OCCURRENCE:
        pooled = _some(histories)
        rows, method = co_occurrence_vectors(pooled, len(item_ids), dim), source
        made_from = [history.tolist() for history in pooled]
    else:
        rows, method = _from_file(Path(source).expanduser(), item_ids, dim)
    method = f"{method}, {dim}"
    digest = hashlib.sha256(json.dumps([method, list(item_ids), *made_from]).encode())
    return ItemVectors(_unit(rows), digest.hexdigest(), method)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; a year is followed by its decade."""
    return list(_words(text))


def _words(text: str) -> Iterator[str]:
    for word in WORDS.findall(text.lower()):
        yield word
        if YEAR.fullmatch(word):
            yield f"{word[:3]}0s"


def tf_idf(texts: Sequence[str], dim: int) -> Vectors:
    """TF-IDF over the words that two texts share, each counted once, cut by a truncated SVD.

    Columns beyond the rank are zero. Singular vectors are unique but for their sign, which
    scikit-learn fixes; the start of the iteration is seeded.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    weigh = TfidfVectorizer(analyzer=words_of, binary=True, min_df=min(2, len(texts)))
    try:
        weights = weigh.fit_transform(texts)
    except ValueError:  # no word occurs twice
        return np.zeros((len(texts), dim), np.float32)
    rank = min(dim, min(weights.shape) - 1)
    rows = np.zeros((len(texts), dim), np.float32)
    if rank > 0:
        cut = TruncatedSVD(rank, algorithm="randomized", n_iter=10, random_state=0)
        rows[:, :rank] = cut.fit_transform(weights)
    return rows


def hashed(texts: Sequence[str], dim: int) -> Vectors:
    """Sum of the directions of a text's words, each counted once: (V, dim)."""
    found = [sorted(set(words_of(text))) for text in texts]
    direction = {word: _direction(word, dim) for words in found for word in words}
    rows = [sum((direction[word] for word in words), np.zeros(dim)) for words in found]
    return np.array(rows, np.float32).reshape(len(texts), dim)


def _direction(word: str, dim: int) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(dim)


def wordllama(texts: Sequence[str], dim: int) -> Vectors:
    """Vectors of sentences (V, dim) of WordLlama's 256 numbers, which it was trained to have cut.

    Raises DataError without the package, and for a ``dim`` that is none of WORDLLAMA_DIMS.
    """
    try:
        import wordllama as package
    except ImportError:
        raise _needs(WORDLLAMA, "wordllama") from None
    if dim not in WORDLLAMA_DIMS:
        *smaller, widest = WORDLLAMA_DIMS
        raise DataError(
            f"model.text-dim is {dim}, and {WORDLLAMA} has vectors of "
            f"{', '.join(map(str, smaller))} or {widest} numbers. Fix: choose one of these."
        )
    # As a cache, the package's own folder is found whole, and nothing is asked of the network.
    home = Path(package.__file__).parent
    model = package.WordLlama.load(cache_dir=home, trunc_dim=dim, disable_download=True)
    return _with_words(texts, model.embed(list(texts), norm=False))


def _sentences(source: str, texts: Sequence[str], dim: int) -> Vectors:
    name = source.removeprefix(SENTENCE)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise _needs(source, "sentence-transformers", "sentences") from None
    rows = SentenceTransformer(name, device="cpu").encode(list(texts), convert_to_numpy=True)
    return _with_words(texts, _of_width(rows, dim, name))


def _with_words(texts: Sequence[str], rows: ArrayLike) -> Vectors:
    """``rows``, zero where there is no text: a model has a vector of "" too."""
    known = np.array([bool(text) for text in texts])
    return np.where(known[:, None], np.asarray(rows, np.float32), np.float32(0))


def _needs(source: str, package: str, extra: str = "") -> DataError:
    return DataError(
        f"model.item-vectors = {source!r} needs {package}. "
        f"Fix: pip install 'pfsr[{extra or package}]', or use {TF_IDF!r}."
    )


def _from_file(path: Path, item_ids: Sequence[str], dim: int) -> tuple[Vectors, str]:
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise DataError(
            f"model.item-vectors = {str(path)!r}: neither a file of vectors ({', '.join(readers)}) "
            f"nor one of {TF_IDF}, {HASHED}, {WORDLLAMA}, {CO_OCCURRENCE}, {SENTENCE}<model>. Fix: "
            f"choose one of these."
        )
    ids, found = readers[path.suffix.lower()](path)
    found = _of_width(found, dim, str(path))
    places = {raw: row for row, raw in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(raw for row, raw in enumerate(ids) if places[raw] != row)
        problem, fix = f"item {twice!r} has two vectors", "give each item of the data one"
        raise MalformedFileError(path, None, problem, fix)
    missing = [raw for raw in item_ids if raw not in places]
    if missing:
        raise DataError(
            f"{path} has no vector of {len(missing)} items, among them {', '.join(missing[:5])}. "
            f"Fix: give each item of the data a row."
        )
    rows = found[[places[raw] for raw in item_ids]]
    return rows, hashlib.sha256(read_bytes(path)).hexdigest()


def _read_npz(path: Path) -> tuple[list[str], Vectors]:
    fix = "np.savez(path, ids=array of n raw ids, vectors=array (n, dim))"
    read_bytes(path)  # a missing file is said so
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            ids, vectors = file["ids"].astype(str), file["vectors"].astype(np.float32)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise MalformedFileError(path, None, f"not ids and vectors ({error})", fix) from None
    if vectors.ndim != 2 or ids.shape != vectors.shape[:1] or not np.isfinite(vectors).all():
        problem = f"{ids.size} ids and vectors of shape {vectors.shape}, or values not finite"
        raise MalformedFileError(path, None, problem, fix)
    return ids.tolist(), vectors


def _read_csv(path: Path) -> tuple[list[str], Vectors]:
    table = read_csv_table(path, ",")
    ids, *columns = table.columns.values()
    vectors = np.empty((len(ids), len(columns)), np.float32)
    for row, cells in enumerate(zip(*columns, strict=True)):
        try:
            vectors[row] = [float(cell) for cell in cells]
        except ValueError:
            vectors[row] = np.nan
        if not np.isfinite(vectors[row]).all():
            problem, fix = f"{cells} are not all numbers", "write id,number,... in each line"
            raise MalformedFileError(path, table.lines[row], problem, fix)
    return [cell.strip() for cell in ids], vectors


def _of_width(rows: Vectors, dim: int, name: str) -> Vectors:
    if rows.shape[1] != dim:
        raise DataError(
            f"{name} has vectors of {rows.shape[1]} numbers, model.text-dim is {dim}. "
            f"Fix: model.text-dim = {rows.shape[1]}."
        )
    return rows


def _known(texts: Sequence[str], source: str) -> Sequence[str]:
    if not any(texts):
        raise DataError(
            f"the data have no titles or other texts of items, and model.item-vectors is "
            f"{source!r}. Fix: give the data a column title, genres or text (MovieLens: its file "
            f"of items beside the ratings), or vectors in a file: model.item-vectors = "
            f"'vectors.npz'. For an experiment on data in one place: {CO_OCCURRENCE!r}."
        )
    return texts


def _some(histories: Sequence[ItemArray]) -> Sequence[ItemArray]:
    if not len(histories):
        raise DataError(
            f"model.item-vectors = {CO_OCCURRENCE!r} pools the training histories of all clients, "
            f"and there are none here. Fix: {HASHED!r}, or vectors in a file."
        )
    return histories


def _unit(rows: Vectors) -> Vectors:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float32)
