"""Item vectors from co-occurrence, for data without texts of their items.

Positive pointwise mutual information of the items within ``CONTEXT_STEPS`` steps of a history, cut
to ``vector_dim`` numbers by a singular value decomposition (Levy and Goldberg, NeurIPS 2014). The
vectors are *collaborative*: they encode which items are consumed together, and nothing about what
an item is.

They are made from the training histories of all clients pooled in one place, which no federation
does: they are for simulation and experiments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.items.svd import truncated_svd

CONTEXT_STEPS = 10  # steps on each side


def co_occurrence_vectors(
    histories: Sequence[ItemArray], num_items: int, vector_dim: int
) -> NDArray[np.float32]:
    """``U sqrt(S)`` of the PPMI matrix, row i that of item code i + 1: (V, dim).

    An item that occurs with no other has a row of zeros; so are columns beyond the rank. The same
    histories give the same bytes on one machine: the start of the iteration is seeded.

    Args:
        histories: Training histories, item codes each.
        num_items: V, items of the catalogue.
        vector_dim: Width of a vector.
    """
    ppmi_matrix = _ppmi(_counts(histories, num_items))
    vector_rows = np.zeros((num_items, vector_dim), np.float32)
    svd_rank = min(vector_dim, num_items - 1)
    if svd_rank > 0 and ppmi_matrix.nnz:
        projected_rows, singular_values = truncated_svd(ppmi_matrix, svd_rank)
        vector_rows[:, :svd_rank] = projected_rows / np.sqrt(np.maximum(singular_values, 1e-12))
    return vector_rows


def _counts(histories: Sequence[ItemArray], num_items: int) -> sparse.csr_array:
    """Symmetric co-occurrence, each pair weighing 1 / its distance: (V, V)."""
    user_index = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    item_index = np.concatenate([np.empty(0, np.int64), *histories]) - 1
    matrix_shape = (num_items, num_items)
    pair_counts = sparse.csr_array(matrix_shape)
    for step_gap in range(1, min(CONTEXT_STEPS, len(item_index) - 1) + 1):
        same_user = user_index[step_gap:] == user_index[:-step_gap]
        item_pairs = (item_index[:-step_gap][same_user], item_index[step_gap:][same_user])
        pair_counts = (
            pair_counts
            + sparse.coo_array(
                (np.full(same_user.sum(), 1 / step_gap), item_pairs), matrix_shape
            ).tocsr()
        )
    return sparse.csr_array(pair_counts + pair_counts.T)


def _ppmi(pair_counts: sparse.csr_array) -> sparse.csr_array:
    pairs = pair_counts.tocoo()
    row_index, column_index = pairs.coords
    of_item = np.asarray(pair_counts.sum(axis=1)).ravel()
    ratio = pairs.data * of_item.sum() / (of_item[row_index] * of_item[column_index])
    return sparse.csr_array(
        (np.log(np.maximum(ratio, 1.0)), (row_index, column_index)), pair_counts.shape
    )
