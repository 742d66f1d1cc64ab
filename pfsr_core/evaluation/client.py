"""Evaluation of one client: leave-one-out ranking of its users among two named sets of candidates.

"seen-filtered" takes the items of the user's history out of the ranking (what a user sees, and the
protocol of HSTU, Zhai et al., ICML 2024); "seen-included" leaves them in (the protocol of RecBole,
Zhao et al., CIKM 2021), for comparison with published tables.

Where a client's data ask for it there is a third, "sampled-99": among 99 items that the user never
touched. It orders methods otherwise than the whole catalogue does (Krichene and Rendle, KDD 2020)
and is there to be compared with tables of federated recommenders, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, HeldOut, ItemArray, UserHistory
from pfsr_core.evaluation.metrics.registry import (
    FILTERED,
    INCLUDED,
    OF_CLIENTS,
    SAMPLED,
    headline_metrics,
)
from pfsr_core.evaluation.ranking import per_user, rank_in_sample, ranking_sums, ranks

SeenItems = Literal["filtered", "included"]

USERS_PER_BATCH = 512


class Scorer(Protocol):
    """Scores of the whole catalogue for histories."""

    def __call__(
        self,
        histories: Sequence[ItemArray],
        times: Sequence[ItemArray] = (),
        users: ItemArray | None = None,
        /,
    ) -> Tensor:
        """(U, V+1), one column per code.

        ``histories``: codes, oldest first; they may be empty. ``times``: whole seconds of each, or
        nothing where they are not known. ``users`` (U,): the places of their users among the
        client's, from 1 on; 0, as without, for a stranger.
        """


@dataclass(frozen=True, eq=False)
class ClientEvaluation:
    """The outcome of every user of one client, in the order of the client's users.

    Attributes:
        client: Its name.
        users: Raw user ids (U,).
        ranks_filtered: 1-based ranks (U,) of the held-out items, seen items filtered.
        ranks_included: The same (U,), seen items included.
        covered: Whether the held-out item occurs in the client's own training histories (U,).
        history_lengths: Number of interactions before the held-out one (U,).
        ranks_sampled: Ranks (U,) among "sampled-99", None where they are not asked for.
        variants: The same users with other models, by name of the model variant.
    """

    client: str
    users: tuple[str, ...]
    ranks_filtered: NDArray[np.int64]
    ranks_included: NDArray[np.int64]
    covered: NDArray[np.bool_]
    history_lengths: NDArray[np.int64]
    ranks_sampled: NDArray[np.int64] | None = None
    variants: Mapping[str, ClientEvaluation] = field(default_factory=dict)

    def ranks(self, seen_items: SeenItems) -> NDArray[np.int64]:
        """Ranks (U,) with seen items "filtered" or "included"."""
        return self.ranks_filtered if seen_items == "filtered" else self.ranks_included

    def select(self, mask: NDArray[np.bool_]) -> ClientEvaluation:
        """The users where ``mask`` (U,) is True."""
        return ClientEvaluation(
            client=self.client,
            users=tuple(user for user, keep in zip(self.users, mask, strict=True) if keep),
            ranks_filtered=self.ranks_filtered[mask],
            ranks_included=self.ranks_included[mask],
            covered=self.covered[mask],
            history_lengths=self.history_lengths[mask],
            ranks_sampled=None if self.ranks_sampled is None else self.ranks_sampled[mask],
            variants={name: one.select(mask) for name, one in self.variants.items()},
        )

    def sums(self) -> dict[str, float]:
        """Mergeable sums: "<candidates>/<metric>", "users" and "covered".

        Those of a model variant are under "<variant>/<candidates>/<metric>".
        """
        others = {
            f"{variant}/{key}": value
            for variant, evaluation in self.variants.items()
            for key, value in evaluation._metric_sums().items()
        }
        return {
            **self._metric_sums(),
            **others,
            "users": float(len(self.users)),
            "covered": float(self.covered.sum()),
        }

    def client_sums(self) -> dict[str, float]:
        """:meth:`sums` of a whole client: with "clients", 1, and its means under "clients/".

        In the means over clients that follow from these all clients with users weigh the same.
        """
        return {
            **self.sums(),
            "clients": float(len(self.users) > 0),
            **{OF_CLIENTS + metric.name: self._mean(metric.name) for metric in headline_metrics()},
        }

    def _mean(self, metric: str) -> float:
        """Mean over the users, seen items filtered; 0 without users."""
        return float(per_user(self.ranks_filtered, metric).mean()) if self.users else 0.0

    def _metric_sums(self) -> dict[str, float]:
        by_candidates = {FILTERED: self.ranks_filtered, INCLUDED: self.ranks_included}
        if self.ranks_sampled is not None:
            by_candidates[SAMPLED] = self.ranks_sampled
        return {
            f"{candidates}/{key}": value
            for candidates, user_ranks in by_candidates.items()
            for key, value in ranking_sums(user_ranks).items()
            if key != "users"
        }


def evaluate_client(score: Scorer, data: ClientDataset, split: HeldOut) -> ClientEvaluation:
    """Rank the held-out item of ``split`` in the client's catalogue, for every user of ``data``.

    The scorer sees the history before that item, and all of it is filtered in "seen-filtered".
    Users are scored ``USERS_PER_BATCH`` at a time, which bounds the memory.

    Raises ValueError when the scorer answers with another shape than (U, V+1), or with NaN.
    """
    places = _batches(len(data.users))
    batches = [_rank_batch(score, data, split, place) for place in places]
    empty = np.empty((3 if data.sampled else 2, 0), np.int64)
    return evaluation_of(data, split, *np.concatenate([empty, *batches], axis=1))


def no_users(sampled: bool = False, variants: Iterable[str] = ()) -> ClientEvaluation:
    """The evaluation of no user, so that empty groups report the keys that others do."""
    none = np.empty(0, np.int64)
    return ClientEvaluation(
        "",
        (),
        ranks_filtered=none,
        ranks_included=none,
        covered=none.astype(np.bool_),
        history_lengths=none,
        ranks_sampled=none if sampled else None,
        variants={name: no_users(sampled) for name in variants},
    )


def evaluation_of(
    data: ClientDataset,
    split: HeldOut,
    ranks_filtered: NDArray[np.int64],
    ranks_included: NDArray[np.int64],
    ranks_sampled: NDArray[np.int64] | None = None,
) -> ClientEvaluation:
    """The evaluation with these ranks (U,) of the held-out items of ``split``."""
    return ClientEvaluation(
        client=data.client,
        users=tuple(user.user for user in data.users),
        ranks_filtered=ranks_filtered,
        ranks_included=ranks_included,
        covered=np.isin(data.targets(split), data.touched),
        history_lengths=np.array([len(user.history(split)) for user in data.users], np.int64),
        ranks_sampled=ranks_sampled,
    )


def user_values(
    evaluations: Sequence[ClientEvaluation], metric: str, seen_items: SeenItems = "filtered"
) -> NDArray[np.float64]:
    """``metric`` of all users, client after client: (sum of U,), what a paired bootstrap takes."""
    values = [per_user(evaluation.ranks(seen_items), metric) for evaluation in evaluations]
    return np.concatenate([np.empty(0, np.float64), *values])


def client_sums(
    evaluations: Sequence[ClientEvaluation], metric: str, seen_items: SeenItems = "filtered"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of ``metric`` and number of users of every client: two arrays (C,)."""
    values = [per_user(evaluation.ranks(seen_items), metric) for evaluation in evaluations]
    sums = np.array([value.sum() for value in values], np.float64)
    return sums, np.array([len(value) for value in values], np.float64)


def _batches(users: int) -> Iterator[slice]:
    for start in range(0, users, USERS_PER_BATCH):
        yield slice(start, start + USERS_PER_BATCH)


def _rank_batch(
    score: Scorer, data: ClientDataset, split: HeldOut, place: slice
) -> NDArray[np.int64]:
    """Ranks of the users in ``place``: (2, U), seen items filtered and included, or (3, U).

    The third row is that of "sampled-99".
    """
    users = data.users[place]
    histories = [user.history(split) for user in users]
    with torch.no_grad():
        times = [user.history_times(split) for user in users]
        scores = score(histories, times, np.arange(place.start, place.start + len(users)) + 1)
    expected = (len(users), data.num_items + 1)
    if tuple(scores.shape) != expected:
        raise ValueError(
            f"client {data.client!r}: the scorer returned {tuple(scores.shape)} for {len(users)} "
            f"users and {data.num_items} items; expected {expected} (column 0 is padding)"
        )
    targets = torch.tensor([user.target(split) for user in users], device=scores.device)
    foreign = _foreign_mask(data, scores)
    masks = (_history_mask(histories, scores) | foreign, foreign)
    found = [ranks(scores, targets, excluded).cpu().numpy() for excluded in masks]
    if data.sampled:
        found.append(_sampled_ranks(scores, users, data.rivals[place], split))
    return np.stack(found)


def _sampled_ranks(
    scores: Tensor,
    users: Sequence[UserHistory],
    rivals: Sequence[ItemArray],
    split: HeldOut,
) -> NDArray[np.int64]:
    everything = np.arange(scores.shape[1])
    rows = zip(scores.cpu().numpy(), users, rivals, strict=True)
    found = [rank_in_sample(row, everything, u.target(split), those) for row, u, those in rows]
    return np.array(found, np.int64)


def _foreign_mask(data: ClientDataset, scores: Tensor) -> Tensor:
    """True where the client does not sell an item: (U, V+1)."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if data.own_catalogue is not None:
        mask[:] = True
        mask[:, torch.from_numpy(data.own_catalogue)] = False
    return mask


def _history_mask(histories: Sequence[ItemArray], scores: Tensor) -> Tensor:
    """True where an item is in the user's history: (U, V+1)."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories))] = True
    return mask
