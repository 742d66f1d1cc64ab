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


def popularity(data: ClientDataset) -> Scorer:
    """Score of an item: how often it occurs in the training histories."""
    counts = torch.from_numpy(_item_counts(data))

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        return counts.repeat(len(histories), 1)

    return score


def item_knn(
    data: ClientDataset,
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
    similarities = _neighbour_similarities(data, neighbours, shrink)

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        users, items, weights = _weighted_items(histories, window, decay)
        size = (len(histories), data.num_items + 1)
        scores = sparse.coo_array((weights, (users, items)), size).tocsr() @ similarities
        return torch.from_numpy(scores.toarray()).round(decimals=TIE_DECIMALS)

    return score


def item_knn_recent(data: ClientDataset) -> Scorer:
    """`item_knn` on the last 10 items, each step back weighing 0.8 of the next."""
    return item_knn(data, window=10, decay=0.8)


def item_knn_shrunk(data: ClientDataset) -> Scorer:
    """`item_knn` for sparse data: all items are near, their cosines shrunk by 10, decay 0.8."""
    return item_knn(data, neighbours=max(1, len(data.touched)), decay=0.8, shrink=10.0)


def markov(data: ClientDataset) -> Scorer:
    """Score of item j after the last item i: count(i -> j) / count(i -> any).

    Popularity decides between items with equal counts: its share of all interactions is less than
    one count, so it never reorders them. After an item without successors, or an empty history,
    the order is that of popularity.
    """
    transitions = _transition_counts(data)
    counts = torch.from_numpy(_item_counts(data))
    tie_break = counts / (counts.sum() + 1.0)

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        # Code 0 is padding and has no successor: the row of an empty history.
        last = [int(history[-1]) if len(history) else 0 for history in histories]
        following = transitions.index_select(0, torch.tensor(last, dtype=torch.int64)).to_dense()
        return (following + tie_break) / following.sum(1, keepdim=True).clamp(min=1.0)

    return score


BASELINES: dict[str, Callable[[ClientDataset], Scorer]] = {
    "popularity": popularity,
    "item-knn": item_knn,
    "item-knn-recent": item_knn_recent,
    "item-knn-shrunk": item_knn_shrunk,
    "markov": markov,
}


def _check_settings(neighbours: int, window: int | None, decay: float, shrink: float) -> None:
    counts = neighbours >= 1 and (window is None or window >= 1)
    if not counts or not 0.0 < decay <= 1.0 or not shrink >= 0.0:
        raise ValueError(
            "item-kNN needs neighbours >= 1, window >= 1 (or None), 0 < decay <= 1 and shrink >= "
            f"0, got {neighbours}, {window}, {decay} and {shrink}"
        )


def _item_counts(data: ClientDataset) -> NDArray[np.float64]:
    """Occurrences of every item code in the training histories: (V+1,)."""
    codes = np.concatenate([np.empty(0, np.int64), *(user.train for user in data.users)])
    return np.bincount(codes, minlength=data.num_items + 1).astype(np.float64)


def _normalised_incidence(data: ClientDataset) -> tuple[Tensor, Tensor]:
    """Sparse (T, N) over the touched items: 1 / sqrt(users with the item) where a user has it.

    Its Gram matrix is the cosine similarity of the items. And sqrt(users with the item): (T,).
    """
    baskets = [np.unique(user.train) for user in data.users]
    items = np.searchsorted(data.touched, np.concatenate([np.empty(0, np.int64), *baskets]))
    users = np.repeat(np.arange(len(baskets)), [len(basket) for basket in baskets])
    users_with = np.bincount(items, minlength=len(data.touched))
    size = (len(data.touched), len(baskets))
    return _sparse(items, users, users_with[items] ** -0.5, size), torch.from_numpy(users_with**0.5)


def _neighbour_similarities(
    data: ClientDataset, neighbours: int, shrink: float
) -> sparse.csr_array:
    """Sparse (V+1, V+1): row i, column j is cosine(i, j) where i is near to j, else 0."""
    incidence, roots = _normalised_incidence(data)
    empty = (torch.empty(2, 0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))
    blocks = [
        _nearest(incidence, roots, start, neighbours, shrink)
        for start in range(0, len(data.touched), ITEMS_PER_BLOCK)
    ]
    places, cosines = zip(empty, *blocks, strict=True)
    near, items = data.touched[torch.cat(places, 1).numpy()]
    size = data.num_items + 1
    return sparse.coo_array((torch.cat(cosines).numpy(), (near, items)), (size, size)).tocsr()


def _nearest(
    incidence: Tensor, roots: Tensor, start: int, neighbours: int, shrink: float
) -> tuple[Tensor, Tensor]:
    """Pairs (2, n) of a near item and the item of one block it is near to; cosines (n,)."""
    items = torch.arange(start, min(start + ITEMS_PER_BLOCK, incidence.shape[0]))
    block = incidence.index_select(0, items).to_dense().t()
    product = roots[items, None] * roots
    cosines = torch.sparse.mm(incidence, block).t() * (product / (product + shrink))
    cosines = cosines.round(decimals=TIE_DECIMALS)
    cosines[torch.arange(len(items)), items] = 0.0
    last = cosines.topk(min(neighbours, cosines.shape[1]), dim=1).values[:, -1:]
    item, near = torch.where((cosines >= last) & (cosines > 0.0))
    return torch.stack([near, items[item]]), cosines[item, near]


def _weighted_items(
    histories: Sequence[ItemArray], window: int | None, decay: float
) -> tuple[ItemArray, ItemArray, NDArray[np.float64]]:
    """Row, code and weight of every history item that counts: (n,) each."""
    recent = [history[::-1][:window] for history in histories]
    lengths = [len(items) for items in recent]
    ages = np.concatenate([np.empty(0, np.int64), *(np.arange(length) for length in lengths)])
    return (
        np.repeat(np.arange(len(recent)), lengths),
        np.concatenate([np.empty(0, np.int64), *recent]),
        decay**ages,
    )


def _transition_counts(data: ClientDataset) -> Tensor:
    """Sparse (V+1, V+1): how often the second item directly follows the first."""
    nothing = np.empty(0, np.int64)
    before = np.concatenate([nothing, *(user.train[:-1] for user in data.users)])
    after = np.concatenate([nothing, *(user.train[1:] for user in data.users)])
    size = data.num_items + 1
    return _sparse(before, after, np.ones(len(before)), (size, size))


def _sparse(
    rows: ItemArray, columns: ItemArray, values: NDArray[np.floating], shape: tuple[int, int]
) -> Tensor:
    indices = torch.from_numpy(np.stack([rows, columns]).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(values), shape, check_invariants=True
    ).coalesce()
