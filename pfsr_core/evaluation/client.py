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
        nothing where they are not known. ``users`` (U,): the rows of their users among the
        client's, from 1 on; 0, as without, for an unknown user (cold start).
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

    def select(self, user_mask: NDArray[np.bool_]) -> ClientEvaluation:
        """The users where ``user_mask`` (U,) is True."""
        return ClientEvaluation(
            client=self.client,
            users=tuple(
                user for user, is_selected in zip(self.users, user_mask, strict=True) if is_selected
            ),
            ranks_filtered=self.ranks_filtered[user_mask],
            ranks_included=self.ranks_included[user_mask],
            covered=self.covered[user_mask],
            history_lengths=self.history_lengths[user_mask],
            ranks_sampled=None if self.ranks_sampled is None else self.ranks_sampled[user_mask],
            variants={
                variant_name: variant_evaluation.select(user_mask)
                for variant_name, variant_evaluation in self.variants.items()
            },
        )

    def sums(self) -> dict[str, float]:
        """Mergeable sums: "<candidates>/<metric>", "users" and "covered".

        Those of a model variant are under "<variant>/<candidates>/<metric>".
        """
        variant_sums = {
            f"{variant_name}/{metric_key}": metric_sum
            for variant_name, evaluation in self.variants.items()
            for metric_key, metric_sum in evaluation._metric_sums().items()
        }
        return {
            **self._metric_sums(),
            **variant_sums,
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

    def _mean(self, metric_name: str) -> float:
        """Mean over the users, seen items filtered; 0 without users."""
        return float(per_user(self.ranks_filtered, metric_name).mean()) if self.users else 0.0

    def _metric_sums(self) -> dict[str, float]:
        by_candidates = {FILTERED: self.ranks_filtered, INCLUDED: self.ranks_included}
        if self.ranks_sampled is not None:
            by_candidates[SAMPLED] = self.ranks_sampled
        return {
            f"{candidates}/{metric_key}": metric_sum
            for candidates, user_ranks in by_candidates.items()
            for metric_key, metric_sum in ranking_sums(user_ranks).items()
            if metric_key != "users"
        }


def evaluate_client(score: Scorer, client_data: ClientDataset, split: HeldOut) -> ClientEvaluation:
    """Ranks every user's held-out item of ``split`` in the client's catalogue.

    The scorer sees the history before that item, and all of it is filtered in "seen-filtered".
    Users are scored ``USERS_PER_BATCH`` at a time, which bounds the memory.

    Raises ValueError when the scorer answers with another shape than (U, V+1), or with NaN.
    """
    user_slices = _batches(len(client_data.users))
    rank_batches = [
        _rank_batch(score, client_data, split, user_slice) for user_slice in user_slices
    ]
    empty_ranks = np.empty((3 if client_data.sampled else 2, 0), np.int64)
    return evaluation_of(client_data, split, *np.concatenate([empty_ranks, *rank_batches], axis=1))


def no_users(sampled: bool = False, variants: Iterable[str] = ()) -> ClientEvaluation:
    """The evaluation of no user, so that empty groups report the keys that others do."""
    no_ranks = np.empty(0, np.int64)
    return ClientEvaluation(
        "",
        (),
        ranks_filtered=no_ranks,
        ranks_included=no_ranks,
        covered=no_ranks.astype(np.bool_),
        history_lengths=no_ranks,
        ranks_sampled=no_ranks if sampled else None,
        variants={variant_name: no_users(sampled) for variant_name in variants},
    )


def evaluation_of(
    client_data: ClientDataset,
    split: HeldOut,
    ranks_filtered: NDArray[np.int64],
    ranks_included: NDArray[np.int64],
    ranks_sampled: NDArray[np.int64] | None = None,
) -> ClientEvaluation:
    """The evaluation with these ranks (U,) of the held-out items of ``split``."""
    return ClientEvaluation(
        client=client_data.client,
        users=tuple(user.user for user in client_data.users),
        ranks_filtered=ranks_filtered,
        ranks_included=ranks_included,
        covered=np.isin(client_data.targets(split), client_data.touched),
        history_lengths=np.array(
            [len(user.history(split)) for user in client_data.users], np.int64
        ),
        ranks_sampled=ranks_sampled,
    )


def user_values(
    evaluations: Sequence[ClientEvaluation], metric_name: str, seen_items: SeenItems = "filtered"
) -> NDArray[np.float64]:
    """The metric of all users, client after client: (sum of U,), as a paired bootstrap takes it."""
    client_values = [
        per_user(evaluation.ranks(seen_items), metric_name) for evaluation in evaluations
    ]
    return np.concatenate([np.empty(0, np.float64), *client_values])


def client_sums(
    evaluations: Sequence[ClientEvaluation], metric_name: str, seen_items: SeenItems = "filtered"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of ``metric_name`` and number of users of every client: two arrays (C,)."""
    client_values = [
        per_user(evaluation.ranks(seen_items), metric_name) for evaluation in evaluations
    ]
    metric_sums = np.array([user_metrics.sum() for user_metrics in client_values], np.float64)
    return metric_sums, np.array([len(user_metrics) for user_metrics in client_values], np.float64)


def _batches(num_users: int) -> Iterator[slice]:
    for batch_start in range(0, num_users, USERS_PER_BATCH):
        yield slice(batch_start, batch_start + USERS_PER_BATCH)


def _rank_batch(
    score: Scorer, client_data: ClientDataset, split: HeldOut, user_slice: slice
) -> NDArray[np.int64]:
    """Ranks of the users in ``user_slice``: (2, U), seen items filtered and included, or (3, U).

    The third row is that of "sampled-99".
    """
    batch_users = client_data.users[user_slice]
    histories = [user.history(split) for user in batch_users]
    with torch.no_grad():
        times = [user.history_times(split) for user in batch_users]
        scores = score(
            histories, times, np.arange(user_slice.start, user_slice.start + len(batch_users)) + 1
        )
    expected_shape = (len(batch_users), client_data.num_items + 1)
    if tuple(scores.shape) != expected_shape:
        raise ValueError(
            f"client {client_data.client!r}: the scorer returned {tuple(scores.shape)} for "
            f"{len(batch_users)} users and {client_data.num_items} items; expected "
            f"{expected_shape} (column 0 is padding)"
        )
    target_items = torch.tensor([user.target(split) for user in batch_users], device=scores.device)
    foreign_mask = _foreign_mask(client_data, scores)
    excluded_masks = (_history_mask(histories, scores) | foreign_mask, foreign_mask)
    rank_rows = [ranks(scores, target_items, excluded).cpu().numpy() for excluded in excluded_masks]
    if client_data.sampled:
        rank_rows.append(_sampled_ranks(scores, batch_users, client_data.rivals[user_slice], split))
    return np.stack(rank_rows)


def _sampled_ranks(
    scores: Tensor,
    users: Sequence[UserHistory],
    rivals: Sequence[ItemArray],
    split: HeldOut,
) -> NDArray[np.int64]:
    all_items = np.arange(scores.shape[1])
    score_rows = zip(scores.cpu().numpy(), users, rivals, strict=True)
    rank_list = [
        rank_in_sample(user_scores, all_items, u.target(split), user_rivals)
        for user_scores, u, user_rivals in score_rows
    ]
    return np.array(rank_list, np.int64)


def _foreign_mask(client_data: ClientDataset, scores: Tensor) -> Tensor:
    """True where the client does not sell an item: (U, V+1)."""
    foreign_mask = torch.zeros_like(scores, dtype=torch.bool)
    if client_data.own_catalogue is not None:
        foreign_mask[:] = True
        foreign_mask[:, torch.from_numpy(client_data.own_catalogue)] = False
    return foreign_mask


def _history_mask(histories: Sequence[ItemArray], scores: Tensor) -> Tensor:
    """True where an item is in the user's history: (U, V+1)."""
    user_rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    history_mask = torch.zeros_like(scores, dtype=torch.bool)
    history_mask[torch.from_numpy(user_rows), torch.from_numpy(np.concatenate(histories))] = True
    return history_mask
