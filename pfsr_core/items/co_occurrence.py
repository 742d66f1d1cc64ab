"""Item vectors from what occurs together, for data that say nothing about their items.

Positive pointwise mutual information of the items within ``CONTEXT`` steps of a history, cut to
``dim`` numbers by a singular value decomposition (Levy and Goldberg, NeurIPS 2014). The vectors are
*collaborative*: they say who consumes what together, and nothing about what an item is.

They are made from the training histories of all clients pooled in one place, which no federation
does: they are for simulation and experiments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pfsr_core.data.client_dataset import ItemArray

CONTEXT = 10  # steps on each side


def co_occurrence_vectors(
    histories: Sequence[ItemArray], num_items: int, dim: int
) -> NDArray[np.float32]:
    """``U sqrt(S)`` of the PPMI matrix, row i that of item code i + 1: (V, dim).

    An item that occurs with no other has a row of zeros; so are columns beyond the rank. The same
    histories give the same bytes on one machine: the start of the iteration is seeded.
    """
    from sklearn.decomposition import TruncatedSVD

    information = _ppmi(_counts(histories, num_items))
    rows = np.zeros((num_items, dim), np.float32)
    rank = min(dim, num_items - 1)
    if rank > 0 and information.nnz:
        cut = TruncatedSVD(rank, algorithm="randomized", n_iter=10, random_state=0)
        found = cut.fit_transform(information)
        rows[:, :rank] = found / np.sqrt(np.maximum(cut.singular_values_, 1e-12))
    return rows


def _counts(histories: Sequence[ItemArray], num_items: int) -> sparse.csr_array:
    """Symmetric co-occurrence, each pair weighing 1 / its distance: (V, V)."""
    user = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    item = np.concatenate([np.empty(0, np.int64), *histories]) - 1
    size = (num_items, num_items)
    total = sparse.csr_array(size)
    for gap in range(1, min(CONTEXT, len(item) - 1) + 1):
        same = user[gap:] == user[:-gap]
        pairs = (item[:-gap][same], item[gap:][same])
        total = total + sparse.coo_array((np.full(same.sum(), 1 / gap), pairs), size).tocsr()
    return sparse.csr_array(total + total.T)


def _ppmi(counts: sparse.csr_array) -> sparse.csr_array:
    pairs = counts.tocoo()
    row, column = pairs.coords
    of_item = np.asarray(counts.sum(axis=1)).ravel()
    ratio = pairs.data * of_item.sum() / (of_item[row] * of_item[column])
    return sparse.csr_array((np.log(np.maximum(ratio, 1.0)), (row, column)), counts.shape)
