"""Histories and times of several users as right-padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pad_right(histories: Sequence[NDArray[np.int64]], max_length: int) -> tuple[Tensor, Tensor]:
    """The last items of each history as one right-padded tensor.

    Args:
        histories: Item codes, one array a user.
        max_length: Number of items that are kept of each.

    Returns:
        Codes (B, L) and lengths (B,). L is the longest of them, at least 1, so that short batches
        stay cheap.
    """
    cut_histories = [history[-max_length:] for history in histories]
    lengths = torch.tensor([len(history) for history in cut_histories])
    padded_items = torch.zeros(
        len(cut_histories), max(1, *(len(history) for history in cut_histories)), dtype=torch.long
    )
    for row, history in enumerate(cut_histories):
        padded_items[row, : len(history)] = torch.from_numpy(history)
    return padded_items, lengths


def pad_times(times: Sequence[NDArray[np.int64]], padded_items: Tensor) -> Tensor:
    """Times of the interactions that :func:`pad_right` kept, at the same positions.

    Args:
        times: Seconds of whole histories, one array each.
        padded_items: Their items (B, L), as padded.

    Returns:
        Seconds (B, L), 0 at padding.
    """
    padded_times = torch.zeros_like(padded_items)
    for row, user_times in enumerate(times):
        last_times = torch.from_numpy(user_times[-padded_items.shape[1] :])
        padded_times[row, : len(last_times)] = last_times
    return padded_times
