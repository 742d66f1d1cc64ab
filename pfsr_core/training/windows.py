"""What a client trains on: windows of its histories, in batches, and samples of prefixes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.training.fisher import Samples
from pfsr_core.training.padding import pad_right, pad_times


@dataclass(frozen=True)
class Windows:
    """W windows of at most L + 1 interactions, right-padded with 0.

    ``items`` (W, L + 1): item codes, or row numbers of a client's table. ``users`` (W,): whose they
    are, 1 for the client's first user. ``times`` (W, L + 1): their seconds, None for a model that
    reads none.
    """

    items: Tensor
    users: Tensor
    times: Tensor | None = None

    def __len__(self) -> int:
        """The number of windows."""
        return len(self.items)

    @property
    def longest(self) -> int:
        """Interactions of the longest window."""
        return int((self.items > 0).sum(1).max())

    def pick(self, rows: Tensor) -> Windows:
        """The windows at ``rows``, cut to their longest, but to no less than two interactions."""
        times = None if self.times is None else self.times[rows]
        picked = Windows(self.items[rows], self.users[rows], times)
        end = max(2, picked.longest)
        cut = None if times is None else times[:, :end]
        return Windows(picked.items[:, :end], picked.users, cut)


def training_windows(data: ClientDataset, max_length: int, with_times: bool = False) -> Windows:
    """All training histories cut into windows of at most ``max_length + 1`` items.

    Windows overlap by one item, so that every item after a user's first is a target exactly once.
    They are cut from the end: the last window of a long history is always full.
    """
    pieces = _pieces([user.train for user in data.users], max_length)
    items = torch.zeros(0, 2, dtype=torch.long)
    if pieces:
        items = pad_right([piece for piece, _ in pieces], max_length + 1)[0]
    users, times = torch.tensor([user for _, user in pieces], dtype=torch.long), None
    if with_times:
        known = _pieces([user.history_times("valid") for user in data.users], max_length)
        times = pad_times([piece for piece, _ in known], items)
    return Windows(items, users, times)


def _pieces(histories: Sequence[ItemArray], max_length: int) -> list[tuple[ItemArray, int]]:
    """Windows of histories, each with its history's place, from 1 on."""
    return [
        (history[max(0, end - max_length - 1) : end], place)
        for place, history in enumerate(histories, start=1)
        for end in range(len(history), 1, -max_length)
    ]


def batches(windows: Windows, batch_size: int, generator: torch.Generator) -> Iterable[Windows]:
    """One shuffled pass, each batch cut to its longest window."""
    order = torch.randperm(len(windows), generator=generator)
    for rows in order.split(batch_size):
        yield windows.pick(rows)


def prefix_samples(
    data: ClientDataset,
    max_length: int,
    count: int,
    generator: torch.Generator,
    with_times: bool = False,
) -> Samples:
    """At most ``count`` (prefix, next item) pairs drawn without replacement from the training data.

    Items are codes; no prefix is longer than ``max_length``.
    """
    places = [(user, end) for user in data.users for end in range(1, len(user.train))]
    chosen = torch.randperm(len(places), generator=generator)[:count].tolist()
    prefixes = [places[i][0].train[: places[i][1]] for i in chosen]
    targets = [int(places[i][0].train[places[i][1]]) for i in chosen]
    items, lengths = pad_right(prefixes or [np.zeros(0, np.int64)], max_length)
    times = None
    if with_times:
        known = [places[i][0].history_times("valid")[: places[i][1]] for i in chosen]
        times = pad_times(known, items)[: len(chosen)]
    targets_ = torch.tensor(targets, dtype=torch.long)
    return Samples(items[: len(chosen)], lengths[: len(chosen)], targets_, times)
