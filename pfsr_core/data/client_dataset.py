"""What one client holds: its users' histories, each with its held-out items."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.protocols import STRICT

ItemArray = NDArray[np.int64]
HeldOut = Literal["valid", "test"]
SPLITS: tuple[HeldOut, HeldOut] = ("valid", "test")
NUM_SAMPLED_NEGATIVES = 99  # of the evaluation among sampled items


def unknown_times() -> ItemArray:
    """The times of interactions of which none are known: (0,)."""
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class UserHistory:
    """One user's interactions in time order, split by the protocol.

    ``user`` is the raw id. ``train`` holds item codes (1-based; 0 is padding), oldest first.
    ``valid`` and ``test`` are the held-out item codes. ``times``: whole seconds of all of them in
    this order, (n + 2,); empty where the source has none.
    """

    user: str
    train: ItemArray
    valid: int
    test: int
    times: ItemArray = field(default_factory=unknown_times, repr=False)

    def history(self, split: HeldOut) -> ItemArray:
        """Items known before the held-out item of ``split``: (n,) codes, oldest first."""
        return self.train if split == "valid" else np.append(self.train, np.int64(self.valid))

    def history_times(self, split: HeldOut) -> ItemArray:
        """Seconds of :meth:`history`: (n,); zeros where no times are known."""
        length = len(self.history(split))
        return self.times[:length] if len(self.times) else np.zeros(length, np.int64)

    def target(self, split: HeldOut) -> int:
        """The held-out item code of ``split``."""
        return self.valid if split == "valid" else self.test

    @property
    def all_items(self) -> ItemArray:
        """Every known item, held-out ones included: what serving looks at."""
        return np.concatenate([self.train, [self.valid, self.test]]).astype(np.int64)

    def rivals(self, catalogue: ItemArray) -> ItemArray:
        """Sorted codes (99,) of ``catalogue`` that the user never touched, or as many as there are.

        Drawn by the raw user id alone: always the same, for every method, run and split.
        """
        generator = np.random.default_rng([*b"sampled-99", *self.user.encode()])
        unseen_items = np.setdiff1d(catalogue, self.all_items)
        return np.sort(generator.permutation(unseen_items)[:NUM_SAMPLED_NEGATIVES]).astype(np.int64)


@dataclass(frozen=True)
class ClientDataset:
    """The users of one client, the unit of personalization.

    ``item_ids[code - 1]`` is the raw id of an item code; the federation has ``num_items`` items.
    ``own_catalogue``: sorted codes of the items that this client sells, None where it sells all.
    Nothing else is ranked, trained against or recommended here.
    ``secret``: random bytes that only the client's node knows; empty where there is no node.
    ``protocol`` (:mod:`pfsr_core.data.protocols`) says what a training negative may be; ``sampled``
    whether held-out items are also ranked among each user's rivals.
    """

    client: str
    users: tuple[UserHistory, ...]
    item_ids: tuple[str, ...]
    secret: bytes = field(default=b"", repr=False)
    protocol: str = STRICT.name
    sampled: bool = False
    own_catalogue: ItemArray | None = field(default=None, repr=False)

    @property
    def num_items(self) -> int:
        """Number of items of the federation."""
        return len(self.item_ids)

    @property
    def rankable_items(self) -> ItemArray:
        """Sorted codes of the items that this client ranks: (C,). Made at every call."""
        if self.own_catalogue is None:
            return np.arange(1, self.num_items + 1)
        return self.own_catalogue

    @property
    def catalogue_size(self) -> int:
        """Number of items that this client ranks."""
        return self.num_items if self.own_catalogue is None else len(self.own_catalogue)

    @property
    def num_interactions(self) -> int:
        """Training interactions, the weight of this client in an average."""
        return sum(len(user.train) for user in self.users)

    @cached_property
    def touched(self) -> ItemArray:
        """Sorted codes of the items in the training histories: (n,)."""
        if not self.users:
            return np.empty(0, np.int64)
        return np.unique(np.concatenate([user.train for user in self.users])).astype(np.int64)

    @cached_property
    def rivals(self) -> tuple[ItemArray, ...]:
        """:meth:`UserHistory.rivals` of every user."""
        return tuple(user.rivals(self.rankable_items) for user in self.users)

    def targets(self, split: HeldOut) -> ItemArray:
        """Held-out item code of every user: (U,)."""
        return np.array([user.target(split) for user in self.users], np.int64)

    def target_coverage(self, split: HeldOut) -> int:
        """How many held-out items occur in this client's own training histories."""
        return int(np.isin(self.targets(split), self.touched).sum())


def with_own_catalogue(client_data: ClientDataset) -> ClientDataset:
    """The same client selling what occurs in its users' histories, held-out items included."""
    histories = [user.all_items for user in client_data.users]
    own_items = np.unique(np.concatenate([np.empty(0, np.int64), *histories])).astype(np.int64)
    return replace(client_data, own_catalogue=own_items)
