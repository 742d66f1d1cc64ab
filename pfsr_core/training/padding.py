"""Histories and times of several users as right-padded tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def pad_right(histories: Sequence[NDArray[np.int64]], max_length: int) -> tuple[Tensor, Tensor]:
    """The last ``max_length`` items of each history: codes (B, L) and lengths (B,).

    L is the longest of them, at least 1, so that short batches stay cheap.
    """
    cut = [history[-max_length:] for history in histories]
    lengths = torch.tensor([len(history) for history in cut])
    items = torch.zeros(len(cut), max(1, *(len(history) for history in cut)), dtype=torch.long)
    for row, history in enumerate(cut):
        items[row, : len(history)] = torch.from_numpy(history)
    return items, lengths


def pad_times(times: Sequence[NDArray[np.int64]], items: Tensor) -> Tensor:
    """Seconds of the last interactions of each history, where :func:`pad_right` put its items.

    ``times``: of whole histories, or of none. ``items`` (B, L) as padded; (B, L) too, 0 elsewhere.
    """
    padded = torch.zeros_like(items)
    for row, known in enumerate(times):
        last = torch.from_numpy(known[-items.shape[1] :])
        padded[row, : len(last)] = last
    return padded
