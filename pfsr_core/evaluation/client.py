"""Evaluation of one client: leave-one-out ranking of its users in two named views.

"excluded" removes the items of the user's history from the ranking (what a user sees, and the
protocol of HSTU, Zhai et al., ICML 2024); "kept" leaves them in (the protocol of RecBole, Zhao et
al., CIKM 2021), for comparison with published tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, HeldOut, ItemArray, UserHistory
from pfsr_core.evaluation.ranking import per_user, ranking_sums, ranks

Scorer = Callable[[Sequence[ItemArray]], Tensor]
"""Histories (codes, oldest first; they may be empty) -> scores (U, V+1), one column per code."""

View = Literal["excluded", "kept"]

USERS_PER_BATCH = 512


@dataclass(frozen=True, eq=False)
class ClientEvaluation:
    """The outcome of every user of one client, in the order of the client's users.

    ``ranks_excluded`` and ``ranks_kept`` (U,) are the 1-based ranks of the held-out items in the
    two views, ``covered`` (U,) says whether the held-out item occurs in the client's own training
    histories, ``history_lengths`` (U,) counts the interactions before the held-out one.
    """

    client: str
    users: tuple[str, ...]
    ranks_excluded: NDArray[np.int64]
    ranks_kept: NDArray[np.int64]
    covered: NDArray[np.bool_]
    history_lengths: NDArray[np.int64]

    def ranks(self, view: View) -> NDArray[np.int64]:
        """Ranks (U,) of the named view."""
        return self.ranks_excluded if view == "excluded" else self.ranks_kept

    def select(self, mask: NDArray[np.bool_]) -> ClientEvaluation:
        """The users where ``mask`` (U,) is True."""
        return ClientEvaluation(
            client=self.client,
            users=tuple(user for user, keep in zip(self.users, mask, strict=True) if keep),
            ranks_excluded=self.ranks_excluded[mask],
            ranks_kept=self.ranks_kept[mask],
            covered=self.covered[mask],
            history_lengths=self.history_lengths[mask],
        )

    def sums(self) -> dict[str, float]:
        """Mergeable sums: "<view>/<metric>" of both views, "users" and "covered"."""
        views = {"excluded": self.ranks_excluded, "kept": self.ranks_kept}
        metrics = {
            f"{view}/{key}": value
            for view, view_ranks in views.items()
            for key, value in ranking_sums(view_ranks).items()
            if key != "users"
        }
        return {
            **metrics,
            "users": float(len(self.users)),
            "covered": float(self.covered.sum()),
        }


def evaluate_client(score: Scorer, data: ClientDataset, split: HeldOut) -> ClientEvaluation:
    """Rank the held-out item of ``split`` for every user of ``data``.

    The scorer sees the history before that item, and all of it is what the view "excluded"
    removes. Users are scored ``USERS_PER_BATCH`` at a time, which bounds the memory.

    Raises ValueError when the scorer answers with another shape than (U, V+1), or with NaN.
    """
    batches = [_rank_batch(score, data, users, split) for users in _batches(data.users)]
    empty = np.empty((2, 0), np.int64)
    return evaluation_of(data, split, *np.concatenate([empty, *batches], axis=1))


def evaluation_of(
    data: ClientDataset,
    split: HeldOut,
    ranks_excluded: NDArray[np.int64],
    ranks_kept: NDArray[np.int64],
) -> ClientEvaluation:
    """The evaluation with these ranks (U,) of the held-out items of ``split``."""
    return ClientEvaluation(
        client=data.client,
        users=tuple(user.user for user in data.users),
        ranks_excluded=ranks_excluded,
        ranks_kept=ranks_kept,
        covered=np.isin(data.targets(split), data.touched),
        history_lengths=np.array([len(user.history(split)) for user in data.users], np.int64),
    )


def user_values(
    evaluations: Sequence[ClientEvaluation], metric: str, view: View = "excluded"
) -> NDArray[np.float64]:
    """``metric`` of all users, client after client: (sum of U,), what a paired bootstrap takes."""
    values = [per_user(evaluation.ranks(view), metric) for evaluation in evaluations]
    return np.concatenate([np.empty(0, np.float64), *values])


def client_sums(
    evaluations: Sequence[ClientEvaluation], metric: str, view: View = "excluded"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of ``metric`` and number of users of every client: two arrays (C,)."""
    values = [per_user(evaluation.ranks(view), metric) for evaluation in evaluations]
    sums = np.array([value.sum() for value in values], np.float64)
    return sums, np.array([len(value) for value in values], np.float64)


def _batches(users: Sequence[UserHistory]) -> Iterator[Sequence[UserHistory]]:
    for start in range(0, len(users), USERS_PER_BATCH):
        yield users[start : start + USERS_PER_BATCH]


def _rank_batch(
    score: Scorer, data: ClientDataset, users: Sequence[UserHistory], split: HeldOut
) -> NDArray[np.int64]:
    """Ranks of some users in the two views: (2, U)."""
    histories = [user.history(split) for user in users]
    with torch.no_grad():
        scores = score(histories)
    expected = (len(users), data.num_items + 1)
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"client {data.client!r}: the scorer returned {tuple(scores.shape)} for {len(users)} "
            f"users and {data.num_items} items; expected {expected} (column 0 is padding)"
        )
    targets = torch.tensor([user.target(split) for user in users], device=scores.device)
    nothing = torch.zeros_like(scores, dtype=torch.bool)
    views = (_history_mask(histories, scores), nothing)
    return np.stack([ranks(scores, targets, excluded).cpu().numpy() for excluded in views])


def _history_mask(histories: Sequence[ItemArray], scores: Tensor) -> Tensor:
    """True where an item is in the user's history: (U, V+1)."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories))] = True
    return mask
