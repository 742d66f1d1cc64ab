"""Baselines without a model, fitted on one client's own training histories.

Each builder takes the client's data and returns a scorer: histories -> scores (U, V+1). Nothing
leaves the client, so they are the floor that a federated model has to clear. Matrices are sparse:
no dense (V, V) or (N, V) array is ever made. Items that the client has never seen score 0.

Sources: item-kNN with cosine similarity, Sarwar et al., WWW 2001; recency decay of the session
baselines of Ludewig and Jannach, UMUAI 2018; shrinkage, Bell and Koren, ICDM 2007; first-order
Markov chains, Rendle et al., WWW 2010.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.evaluation.client import Scorer

# Sums of the same similarities in another order differ in the last bits; rounding keeps them ties.
TIE_DECIMALS = 10

ITEMS_PER_BLOCK = 256


def popularity(client_data: ClientDataset) -> Scorer:
    """Score of an item: how often it occurs in the training histories."""
    item_counts = torch.from_numpy(_item_counts(client_data))

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        return item_counts.repeat(len(histories), 1)

    return score


def item_knn(
    client_data: ClientDataset,
    neighbours: int = 100,
    window: int | None = None,
    decay: float = 1.0,
    shrink: float = 0.0,
) -> Scorer:
    """Score of item j: sum of weight(i) * cosine(i, j) over the history items i near to j.

    cosine(i, j) = users with both / (sqrt(users with i * users with j) + ``shrink``), over the
    training histories; shrunk cosines trust what few users show less. Near are the ``neighbours``
    items most similar to j, itself left out, and those that tie with the last of them. Only the
    last ``window`` items of a history count (None: all of them), and an item ``age`` steps before
    the last one weighs ``decay ** age``.

    Raises ValueError when a setting is out of its range.
    """
    _check_settings(neighbours, window, decay, shrink)
    similarities = _neighbour_similarities(client_data, neighbours, shrink)

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        user_rows, item_codes, item_weights = _weighted_items(histories, window, decay)
        matrix_size = (len(histories), client_data.num_items + 1)
        scores = (
            sparse.coo_array((item_weights, (user_rows, item_codes)), matrix_size).tocsr()
            @ similarities
        )
        return torch.from_numpy(scores.toarray()).round(decimals=TIE_DECIMALS)

    return score


def item_knn_recent(client_data: ClientDataset) -> Scorer:
    """`item_knn` on the last 10 items, each step back weighing 0.8 of the next."""
    return item_knn(client_data, window=10, decay=0.8)


def item_knn_shrunk(client_data: ClientDataset) -> Scorer:
    """`item_knn` for sparse data: all items are near, their cosines shrunk by 10, decay 0.8."""
    return item_knn(
        client_data, neighbours=max(1, len(client_data.touched)), decay=0.8, shrink=10.0
    )


def markov(client_data: ClientDataset) -> Scorer:
    """Score of item j after the last item i: count(i -> j) / count(i -> any).

    Popularity decides between items with equal counts: its share of all interactions is less than
    one count, so it never reorders them. After an item without successors, or an empty history,
    the order is that of popularity.
    """
    transition_counts = _transition_counts(client_data)
    item_counts = torch.from_numpy(_item_counts(client_data))
    tie_break = item_counts / (item_counts.sum() + 1.0)

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        # Code 0 is padding and has no successor: the row of an empty history.
        last_items = [int(history[-1]) if len(history) else 0 for history in histories]
        next_counts = transition_counts.index_select(
            0, torch.tensor(last_items, dtype=torch.int64)
        ).to_dense()
        return (next_counts + tie_break) / next_counts.sum(1, keepdim=True).clamp(min=1.0)

    return score


BASELINES: dict[str, Callable[[ClientDataset], Scorer]] = {
    "popularity": popularity,
    "item-knn": item_knn,
    "item-knn-recent": item_knn_recent,
    "item-knn-shrunk": item_knn_shrunk,
    "markov": markov,
}


def _check_settings(neighbours: int, window: int | None, decay: float, shrink: float) -> None:
    valid_counts = neighbours >= 1 and (window is None or window >= 1)
    if not valid_counts or not 0.0 < decay <= 1.0 or not shrink >= 0.0:
        raise ValueError(
            "item-kNN needs neighbours >= 1, window >= 1 (or None), 0 < decay <= 1 and shrink >= "
            f"0, got {neighbours}, {window}, {decay} and {shrink}"
        )


def _item_counts(client_data: ClientDataset) -> NDArray[np.float64]:
    """Occurrences of every item code in the training histories: (V+1,)."""
    item_codes = np.concatenate(
        [np.empty(0, np.int64), *(user.train for user in client_data.users)]
    )
    return np.bincount(item_codes, minlength=client_data.num_items + 1).astype(np.float64)


def _normalised_incidence(client_data: ClientDataset) -> tuple[Tensor, Tensor]:
    """Sparse (T, N) over the touched items: 1 / sqrt(users with the item) where a user has it.

    Its Gram matrix is the cosine similarity of the items. And sqrt(users with the item): (T,).
    """
    user_baskets = [np.unique(user.train) for user in client_data.users]
    item_rows = np.searchsorted(
        client_data.touched, np.concatenate([np.empty(0, np.int64), *user_baskets])
    )
    user_columns = np.repeat(np.arange(len(user_baskets)), [len(basket) for basket in user_baskets])
    users_with = np.bincount(item_rows, minlength=len(client_data.touched))
    matrix_size = (len(client_data.touched), len(user_baskets))
    return _sparse(
        item_rows, user_columns, users_with[item_rows] ** -0.5, matrix_size
    ), torch.from_numpy(users_with**0.5)


def _neighbour_similarities(
    client_data: ClientDataset, neighbours: int, shrink: float
) -> sparse.csr_array:
    """Sparse (V+1, V+1): row i, column j is cosine(i, j) where i is near to j, else 0."""
    incidence, root_counts = _normalised_incidence(client_data)
    empty_block = (torch.empty(2, 0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    blocks = [
        _nearest(incidence, root_counts, block_start, neighbours, shrink)
        for block_start in range(0, len(client_data.touched), ITEMS_PER_BLOCK)
    ]
    near_pairs, cosines = zip(empty_block, *blocks, strict=True)
    near_items, target_items = client_data.touched[torch.cat(near_pairs, 1).numpy()]
    num_codes = client_data.num_items + 1
    return sparse.coo_array(
        (torch.cat(cosines).numpy(), (near_items, target_items)), (num_codes, num_codes)
    ).tocsr()


def _nearest(
    incidence: Tensor, root_counts: Tensor, block_start: int, neighbours: int, shrink: float
) -> tuple[Tensor, Tensor]:
    """Pairs (2, n) of a near item and the item of one block it is near to; cosines (n,)."""
    block_items = torch.arange(block_start, min(block_start + ITEMS_PER_BLOCK, incidence.shape[0]))
    block_incidence = incidence.index_select(0, block_items).to_dense().t()
    root_product = root_counts[block_items, None] * root_counts
    cosines = torch.sparse.mm(incidence, block_incidence).t() * (
        root_product / (root_product + shrink)
    )
    cosines = cosines.round(decimals=TIE_DECIMALS)
    cosines[torch.arange(len(block_items)), block_items] = 0.0
    last_cosine = cosines.topk(min(neighbours, cosines.shape[1]), dim=1).values[:, -1:]
    item_rows, near_rows = torch.where((cosines >= last_cosine) & (cosines > 0.0))
    return torch.stack([near_rows, block_items[item_rows]]), cosines[item_rows, near_rows]


def _weighted_items(
    histories: Sequence[ItemArray], window: int | None, decay: float
) -> tuple[ItemArray, ItemArray, NDArray[np.float64]]:
    """Row, code and weight of every history item that counts: (n,) each."""
    recent_items = [history[::-1][:window] for history in histories]
    recent_lengths = [len(items) for items in recent_items]
    item_ages = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(length) for length in recent_lengths)]
    )
    return (
        np.repeat(np.arange(len(recent_items)), recent_lengths),
        np.concatenate([np.empty(0, np.int64), *recent_items]),
        decay**item_ages,
    )


def _transition_counts(client_data: ClientDataset) -> Tensor:
    """Sparse (V+1, V+1): how often the second item directly follows the first."""
    no_items = np.empty(0, np.int64)
    first_items = np.concatenate([no_items, *(user.train[:-1] for user in client_data.users)])
    next_items = np.concatenate([no_items, *(user.train[1:] for user in client_data.users)])
    num_codes = client_data.num_items + 1
    return _sparse(first_items, next_items, np.ones(len(first_items)), (num_codes, num_codes))


def _sparse(
    row_indices: ItemArray,
    column_indices: ItemArray,
    values: NDArray[np.floating],
    matrix_shape: tuple[int, int],
) -> Tensor:
    indices = torch.from_numpy(np.stack([row_indices, column_indices]).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(values), matrix_shape, check_invariants=True
    ).coalesce()
