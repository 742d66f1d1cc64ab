"""The truncated singular value decomposition that item vectors are made with."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@contextmanager
def unchanged_globals() -> Iterator[None]:
    """Restores Python's random state and the warning filters, which imports may change."""
    random_state = random.getstate()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        random.setstate(random_state)


def truncated_svd(
    matrix: sparse.csr_matrix | sparse.csr_array, svd_rank: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``U S`` (N, rank) and ``S`` (rank,) of a matrix (N, M); the start is seeded.

    Rows that are all alike have rank 1 and are decomposed directly: they have no variance, which
    scikit-learn would divide by.
    """
    first_row = matrix[[0]].toarray()[0]
    if _all_rows_equal(matrix):
        num_rows, row_length = matrix.shape[0], np.linalg.norm(first_row)
        projected_rows, singular_values = np.zeros((num_rows, svd_rank)), np.zeros(svd_rank)
        projected_rows[:, 0] = row_length
        singular_values[0] = row_length * np.sqrt(num_rows)
        return projected_rows, singular_values
    with unchanged_globals():
        from sklearn.decomposition import TruncatedSVD
    decomposition = TruncatedSVD(svd_rank, algorithm="randomized", n_iter=10, random_state=0)
    return decomposition.fit_transform(matrix), decomposition.singular_values_


def _all_rows_equal(matrix: sparse.csr_matrix | sparse.csr_array) -> bool:
    highest, lowest = matrix.max(axis=0).toarray(), matrix.min(axis=0).toarray()
    return bool((highest == lowest).all())
