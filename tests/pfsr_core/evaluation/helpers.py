"""Hand-made clients and scorers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray, UserHistory
from pfsr_core.evaluation.client import Scorer


def client(*histories: Sequence[int], num_items: int = 6, name: str = "shop") -> ClientDataset:
    """A client whose users' full histories are given; the last two items are held out."""
    users = tuple(
        UserHistory(f"{name}-{row}", np.array(items[:-2], np.int64), items[-2], items[-1])
        for row, items in enumerate(histories)
    )
    return ClientDataset(name, users, tuple(f"i{code}" for code in range(1, num_items + 1)))


def random_client(seed: int, users: int, num_items: int, name: str = "shop") -> ClientDataset:
    """Users with 1 to 12 distinct training items."""
    rng = np.random.default_rng(seed)
    histories = [
        (1 + rng.permutation(num_items)[: rng.integers(3, 15)]).tolist() for _ in range(users)
    ]
    return client(*histories, num_items=num_items, name=name)


def constant(row: Sequence[float]) -> Scorer:
    """The same scores (V+1,) for every history."""

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        return torch.tensor(row).repeat(len(histories), 1)

    return score


def by_content(num_items: int) -> Scorer:
    """Scores drawn from a seed made of the history: pure, and different for every user."""

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        rows = [np.random.default_rng(history).random(num_items + 1) for history in histories]
        return torch.from_numpy(np.stack(rows))

    return score
