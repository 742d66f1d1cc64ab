"""Leave one out in time; ties stay in file order, or are turned around, as the protocol says.

The last interaction of a user is the test item, the second last the validation item. On ML-100K
44 % of the users have a tied last pair, so the tie rule moves results: it belongs to the split,
and the digest of the split belongs to every result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.client_dataset import UserHistory
from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.protocols import PROTOCOLS, STRICT

FEWEST_INTERACTIONS = 3
LATEST = 2.0**61  # seconds: the gap of two such times is a 64-bit number


@dataclass(frozen=True)
class Split:
    """Histories with their held-out items, users in the order of their first appearance.

    ``item_ids[code - 1]`` is the raw id of an item code. ``digest``: SHA-256 (hex) of all raw ids
    of users, training, validation and test items in order. ``num_skipped``: users with fewer than
    three interactions, who are left out.
    """

    users: tuple[UserHistory, ...]
    item_ids: tuple[str, ...]
    digest: str
    num_skipped: int
    protocol: str = STRICT.name


def leave_one_out(interactions: Interactions, protocol: str = STRICT.name) -> Split:
    """Splits every user with at least three interactions; raises DataError if no user has."""
    order, starts = time_order(interactions, PROTOCOLS[protocol].first_is_last)
    times = np.clip(np.floor(interactions.timestamps), -LATEST, LATEST).astype(np.int64)
    users = tuple(
        _hold_out(
            interactions.user_ids[user],
            interactions.items[user_rows],
            times[user_rows] if interactions.has_times else times[:0],
        )
        for user, user_rows in enumerate(np.split(order, starts[1:]))
        if len(user_rows) >= FEWEST_INTERACTIONS
    )
    if not users:
        raise DataError(
            f"{interactions.source}: no user has {FEWEST_INTERACTIONS} interactions, which "
            f"training, validation and test need. Fix: give longer histories."
        )
    num_skipped = len(interactions.user_ids) - len(users)
    digest = split_digest(users, interactions.item_ids)
    return Split(users, interactions.item_ids, digest, num_skipped, protocol)


def time_order(
    interactions: Interactions, first_is_last: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows by (user, timestamp): (N,), and where each user starts: (U,).

    Ties are in file order, or with ``first_is_last`` in the reverse of it.
    """
    file_positions = np.arange(len(interactions))
    sort_keys = (
        -file_positions if first_is_last else file_positions,
        interactions.timestamps,
        interactions.users,
    )
    order = np.lexsort(sort_keys).astype(np.int64)
    user_codes = np.arange(len(interactions.user_ids))
    starts = np.searchsorted(interactions.users[order], user_codes).astype(np.int64)
    return order, starts


def split_digest(users: Sequence[UserHistory], item_ids: Sequence[str]) -> str:
    """SHA-256 (hex) over one JSON line ``[user, [train...], valid, test]`` of raw ids a user."""
    digest = hashlib.sha256()
    for user in users:
        train_ids = [item_ids[code - 1] for code in user.train]
        user_row = [user.user, train_ids, item_ids[user.valid - 1], item_ids[user.test - 1]]
        digest.update(json.dumps(user_row, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _hold_out(user: str, items: NDArray[np.int64], times: NDArray[np.int64]) -> UserHistory:
    return UserHistory(user, items[:-2].copy(), int(items[-2]), int(items[-1]), times)
