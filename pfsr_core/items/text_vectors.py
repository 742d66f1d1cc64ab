"""Public item vectors, of words about the items where there are any, for the mode "semantic".

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
from collections.abc import Sequence
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
from pfsr_core.items.svd import truncated_svd, unchanged_globals

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
    vector_source: str,
    item_ids: Sequence[str],
    item_texts: Sequence[str],
    text_dim: int,
    histories: Sequence[ItemArray] = (),
) -> ItemVectors:
    """Vectors of the items of a catalogue.

    Args:
        vector_source: One of the sources above, or the path of a file.
        item_ids: Raw ids by item code.
        item_texts: Words about each item, "" where none are known.
        text_dim: Width of a vector.
        histories: Training histories of all clients, only for "co-occurrence".

    Raises:
        DataError: The source needs a package, texts, histories or a file that is not there.
    """
    made_from = [list(item_texts)]
    if vector_source == TF_IDF:
        vector_rows = tf_idf(_known(item_texts, vector_source), text_dim)
        method_name = vector_source
    elif vector_source == HASHED:
        vector_rows = hashed(_known(item_texts, vector_source), text_dim)
        method_name = vector_source
    elif vector_source == WORDLLAMA:
        vector_rows = wordllama(_known(item_texts, vector_source), text_dim)
        method_name = f"{vector_source} {version(vector_source)}"  # whose weights come with it
    elif vector_source.startswith(SENTENCE):
        vector_rows = _sentences(vector_source, _known(item_texts, vector_source), text_dim)
        method_name = vector_source
    elif vector_source == CO_OCCURRENCE:
        pooled_histories = _some(histories)
        vector_rows = co_occurrence_vectors(pooled_histories, len(item_ids), text_dim)
        method_name = vector_source
        made_from = [history.tolist() for history in pooled_histories]
    else:
        vector_rows, method_name = _from_file(Path(vector_source).expanduser(), item_ids, text_dim)
    method_name = f"{method_name}, {text_dim}"
    content_digest = hashlib.sha256(json.dumps([method_name, list(item_ids), *made_from]).encode())
    row_lengths = np.linalg.norm(vector_rows, axis=1, keepdims=True)
    unit_rows = np.asarray(vector_rows / np.maximum(row_lengths, 1e-12), np.float32)
    return ItemVectors(unit_rows, content_digest.hexdigest(), method_name)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters; a year is followed by its decade."""
    text_words = []
    for word in WORDS.findall(text.lower()):
        text_words.append(word)
        if YEAR.fullmatch(word):
            text_words.append(f"{word[:3]}0s")
    return text_words


def tf_idf(item_texts: Sequence[str], text_dim: int) -> Vectors:
    """TF-IDF over the words that two texts share, each counted once, cut by a truncated SVD.

    Columns beyond the rank are zero. Singular vectors are unique but for their sign, which
    scikit-learn fixes; the start of the iteration is seeded.
    """
    with unchanged_globals():
        from sklearn.feature_extraction.text import TfidfVectorizer

    tfidf_vectorizer = TfidfVectorizer(
        analyzer=words_of, binary=True, min_df=min(2, len(item_texts))
    )
    try:
        tfidf_weights = tfidf_vectorizer.fit_transform(item_texts)
    except ValueError:  # no word occurs twice
        return np.zeros((len(item_texts), text_dim), np.float32)
    svd_rank = min(text_dim, min(tfidf_weights.shape) - 1)
    vector_rows = np.zeros((len(item_texts), text_dim), np.float32)
    if svd_rank > 0:
        vector_rows[:, :svd_rank], _ = truncated_svd(tfidf_weights, svd_rank)
    return vector_rows


def hashed(item_texts: Sequence[str], text_dim: int) -> Vectors:
    """Sum of the directions of a text's words, each counted once: (V, dim)."""
    word_lists = [sorted(set(words_of(text))) for text in item_texts]
    word_directions = {
        word: _direction(word, text_dim) for text_words in word_lists for word in text_words
    }
    vector_rows = [
        sum((word_directions[word] for word in text_words), np.zeros(text_dim))
        for text_words in word_lists
    ]
    return np.array(vector_rows, np.float32).reshape(len(item_texts), text_dim)


def _direction(word: str, text_dim: int) -> NDArray[np.float64]:
    word_seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(word_seed).standard_normal(text_dim)


def wordllama(item_texts: Sequence[str], text_dim: int) -> Vectors:
    """Vectors of sentences (V, dim) of WordLlama's 256 numbers, which it was trained to have cut.

    Raises DataError without the package, and for a ``text_dim`` that is none of WORDLLAMA_DIMS.
    """
    try:
        import wordllama as package
    except ImportError:
        raise _needs(WORDLLAMA, "wordllama") from None
    if text_dim not in WORDLLAMA_DIMS:
        *smaller, widest = WORDLLAMA_DIMS
        raise DataError(
            f"model.text-dim is {text_dim}, and {WORDLLAMA} has vectors of "
            f"{', '.join(map(str, smaller))} or {widest} numbers. Fix: choose one of these."
        )
    # With the package's own folder as the cache nothing is downloaded.
    package_dir = Path(package.__file__).parent
    sentence_model = package.WordLlama.load(
        cache_dir=package_dir, trunc_dim=text_dim, disable_download=True
    )
    return _with_words(item_texts, sentence_model.embed(list(item_texts), norm=False))


def _sentences(vector_source: str, item_texts: Sequence[str], text_dim: int) -> Vectors:
    model_name = vector_source.removeprefix(SENTENCE)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise _needs(vector_source, "sentence-transformers", "sentences") from None
    vector_rows = SentenceTransformer(model_name, device="cpu").encode(
        list(item_texts), convert_to_numpy=True
    )
    return _with_words(item_texts, _of_width(vector_rows, text_dim, model_name))


def _with_words(item_texts: Sequence[str], vector_rows: ArrayLike) -> Vectors:
    """``vector_rows``, zero where there is no text: a model has a vector of "" too."""
    has_text = np.array([bool(text) for text in item_texts])
    return np.where(has_text[:, None], np.asarray(vector_rows, np.float32), np.float32(0))


def _needs(vector_source: str, package: str, extra_name: str = "") -> DataError:
    return DataError(
        f"model.item-vectors = {vector_source!r} needs {package}. "
        f"Fix: pip install 'pfsr[{extra_name or package}]', or use {TF_IDF!r}."
    )


def _from_file(file_path: Path, item_ids: Sequence[str], text_dim: int) -> tuple[Vectors, str]:
    readers = {".npz": _read_npz, ".csv": _read_csv}
    if file_path.suffix.lower() not in readers:
        raise DataError(
            f"model.item-vectors = {str(file_path)!r}: neither a file of vectors "
            f"({', '.join(readers)}) nor one of {TF_IDF}, {HASHED}, {WORDLLAMA}, "
            f"{CO_OCCURRENCE}, {SENTENCE}<model>. Fix: choose one of these."
        )
    raw_ids, file_rows = readers[file_path.suffix.lower()](file_path)
    file_rows = _of_width(file_rows, text_dim, str(file_path))
    row_by_id = {raw_id: row_index for row_index, raw_id in enumerate(raw_ids)}
    if len(row_by_id) < len(raw_ids):
        repeated_id = next(
            raw_id for row_index, raw_id in enumerate(raw_ids) if row_by_id[raw_id] != row_index
        )
        problem, fix = f"item {repeated_id!r} has two vectors", "give each item of the data one"
        raise MalformedFileError(file_path, None, problem, fix)
    missing_ids = [raw_id for raw_id in item_ids if raw_id not in row_by_id]
    if missing_ids:
        raise DataError(
            f"{file_path} has no vector of {len(missing_ids)} items, among them "
            f"{', '.join(missing_ids[:5])}. "
            f"Fix: give each item of the data a row."
        )
    vector_rows = file_rows[[row_by_id[raw_id] for raw_id in item_ids]]
    return vector_rows, hashlib.sha256(read_bytes(file_path)).hexdigest()


def _read_npz(file_path: Path) -> tuple[list[str], Vectors]:
    fix = "np.savez(path, ids=array of n raw ids, vectors=array (n, dim))"
    read_bytes(file_path)  # raises for a missing file
    try:
        with zipfile.ZipFile(file_path), np.load(file_path, allow_pickle=False) as file:
            raw_ids, vectors = file["ids"].astype(str), file["vectors"].astype(np.float32)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise MalformedFileError(file_path, None, f"not ids and vectors ({error})", fix) from None
    if vectors.ndim != 2 or raw_ids.shape != vectors.shape[:1] or not np.isfinite(vectors).all():
        problem = f"{raw_ids.size} ids and vectors of shape {vectors.shape}, or values not finite"
        raise MalformedFileError(file_path, None, problem, fix)
    return raw_ids.tolist(), vectors


def _read_csv(file_path: Path) -> tuple[list[str], Vectors]:
    csv_table = read_csv_table(file_path, ",")
    raw_ids, *columns = csv_table.columns.values()
    vectors = np.empty((len(raw_ids), len(columns)), np.float32)
    for row_index, row_cells in enumerate(zip(*columns, strict=True)):
        try:
            vectors[row_index] = [float(cell) for cell in row_cells]
        except ValueError:
            vectors[row_index] = np.nan
        if not np.isfinite(vectors[row_index]).all():
            problem, fix = f"{row_cells} are not all numbers", "write id,number,... in each line"
            raise MalformedFileError(file_path, csv_table.lines[row_index], problem, fix)
    return [cell.strip() for cell in raw_ids], vectors


def _of_width(vector_rows: Vectors, text_dim: int, source_name: str) -> Vectors:
    if vector_rows.shape[1] != text_dim:
        raise DataError(
            f"{source_name} has vectors of {vector_rows.shape[1]} numbers, "
            f"model.text-dim is {text_dim}. "
            f"Fix: model.text-dim = {vector_rows.shape[1]}."
        )
    return vector_rows


def _known(item_texts: Sequence[str], vector_source: str) -> Sequence[str]:
    if not any(item_texts):
        raise DataError(
            f"the data have no titles or other texts of items, and model.item-vectors is "
            f"{vector_source!r}. Fix: give the data a column title, genres or text (MovieLens: its "
            f"file of items beside the ratings), or vectors in a file: model.item-vectors = "
            f"'vectors.npz'. For an experiment on data in one place: {CO_OCCURRENCE!r}."
        )
    return item_texts


def _some(histories: Sequence[ItemArray]) -> Sequence[ItemArray]:
    if not len(histories):
        raise DataError(
            f"model.item-vectors = {CO_OCCURRENCE!r} pools the training histories of all clients, "
            f"and there are none here. Fix: {HASHED!r}, or vectors in a file."
        )
    return histories
