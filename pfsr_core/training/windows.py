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

    def pick(self, window_rows: Tensor) -> Windows:
        """Some of the windows, cut to the longest of them.

        Args:
            window_rows: Their row numbers.

        Returns:
            Windows of at least two interactions, padding included.
        """
        picked_times = None if self.times is None else self.times[window_rows]
        picked_windows = Windows(self.items[window_rows], self.users[window_rows], picked_times)
        cut_length = max(2, picked_windows.longest)
        cut_times = None if picked_times is None else picked_times[:, :cut_length]
        return Windows(picked_windows.items[:, :cut_length], picked_windows.users, cut_times)


def training_windows(
    client_data: ClientDataset, max_length: int, with_times: bool = False
) -> Windows:
    """All training histories cut into windows of at most ``max_length + 1`` items.

    Windows overlap by one item, so that every item after a user's first is a target exactly once.
    They are cut from the end: the last window of a long history is always full.
    """
    item_pieces = _pieces([user.train for user in client_data.users], max_length)
    padded_items = torch.zeros(0, 2, dtype=torch.long)
    if item_pieces:
        padded_items = pad_right([piece for piece, _ in item_pieces], max_length + 1)[0]
    user_numbers = torch.tensor([user for _, user in item_pieces], dtype=torch.long)
    padded_times = None
    if with_times:
        time_pieces = _pieces(
            [user.history_times("valid") for user in client_data.users], max_length
        )
        padded_times = pad_times([piece for piece, _ in time_pieces], padded_items)
    return Windows(padded_items, user_numbers, padded_times)


def _pieces(histories: Sequence[ItemArray], max_length: int) -> list[tuple[ItemArray, int]]:
    """Windows of histories, each with its history's place, from 1 on."""
    return [
        (history[max(0, end - max_length - 1) : end], user_number)
        for user_number, history in enumerate(histories, start=1)
        for end in range(len(history), 1, -max_length)
    ]


def batches(windows: Windows, batch_size: int, generator: torch.Generator) -> Iterable[Windows]:
    """One shuffled pass, each batch cut to its longest window."""
    window_order = torch.randperm(len(windows), generator=generator)
    for batch_rows in window_order.split(batch_size):
        yield windows.pick(batch_rows)


def prefix_samples(
    client_data: ClientDataset,
    max_length: int,
    num_samples: int,
    generator: torch.Generator,
    with_times: bool = False,
) -> Samples:
    """Draws (prefix, next item) pairs without replacement from the training data.

    Args:
        client_data: The client.
        max_length: Number of items that are kept of a prefix.
        num_samples: Number of pairs; fewer where the client has not as many.
        generator: Where they are drawn from.
        with_times: Whether the times of the prefixes are returned too.

    Returns:
        The pairs, items as codes.
    """
    prefix_ends = [(user, end) for user in client_data.users for end in range(1, len(user.train))]
    chosen_ends = torch.randperm(len(prefix_ends), generator=generator)[:num_samples].tolist()
    prefixes = [
        prefix_ends[end_index][0].train[: prefix_ends[end_index][1]] for end_index in chosen_ends
    ]
    next_items = [
        int(prefix_ends[end_index][0].train[prefix_ends[end_index][1]]) for end_index in chosen_ends
    ]
    padded_items, lengths = pad_right(prefixes or [np.zeros(0, np.int64)], max_length)
    padded_times = None
    if with_times:
        prefix_times = [
            prefix_ends[end_index][0].history_times("valid")[: prefix_ends[end_index][1]]
            for end_index in chosen_ends
        ]
        padded_times = pad_times(prefix_times, padded_items)[: len(chosen_ends)]
    targets = torch.tensor(next_items, dtype=torch.long)
    return Samples(
        padded_items[: len(chosen_ends)], lengths[: len(chosen_ends)], targets, padded_times
    )
