"""Training pairs of a pointwise loss: interactions of label 1 and sampled negatives of label 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.client_dataset import ClientDataset, ItemArray, UserHistory
from pfsr_core.data.protocols import PROTOCOLS

Labels = NDArray[np.float32]


def training_pairs(
    client_data: ClientDataset, per_positive: int, generator: np.random.Generator
) -> tuple[ItemArray, Labels]:
    """Item codes (n,) and labels (n,): every training interaction is a 1, what is drawn is a 0.

    ``per_positive`` negatives for each, uniform and with replacement among the items that
    :func:`never_negative` leaves; none where it leaves none. Each user's ones before its zeros.
    """
    items: list[ItemArray] = [np.empty(0, np.int64)]
    labels: list[Labels] = [np.empty(0, np.float32)]
    for user in client_data.users:
        item_pool = _remaining_items(client_data, never_negative(client_data, user))
        count = per_positive * len(user.train) if len(item_pool) else 0
        drawn_items = item_pool[generator.integers(0, max(1, len(item_pool)), count)]
        items += [user.train, drawn_items]
        labels += [np.ones(len(user.train), np.float32), np.zeros(count, np.float32)]
    return np.concatenate(items), np.concatenate(labels)


def never_negative(client_data: ClientDataset, user: UserHistory) -> ItemArray:
    """Codes that are never drawn as a negative of ``user``, as the client's protocol says."""
    return (
        user.all_items if PROTOCOLS[client_data.protocol].exclude_held_out_negatives else user.train
    )


def _remaining_items(client_data: ClientDataset, items: ItemArray) -> ItemArray:
    """The codes of the client's catalogue that are not among ``items``, ascending."""
    is_remaining = np.zeros(client_data.num_items + 1, bool)
    is_remaining[client_data.rankable_items] = True
    is_remaining[items] = False
    return np.flatnonzero(is_remaining).astype(np.int64)
