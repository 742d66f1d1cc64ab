"""How item tables start. Row 0 is padding and stays zero."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CONTEXT = 10  # neighbours on each side that count as co-occurring
HOPS = 2  # a neighbour's neighbours count too: small clients see few pairs
MIX = 20.0  # length of the co-occurrence part over the common part


def common_item_table(item_ids: Sequence[str], dim: int, seed: int, std: float) -> Tensor:
    """(V + 1, dim) normal rows, each from a generator of its own: (seed, raw item id).

    The same raw id starts at the same place on every client, whatever its vocabulary is.
    """
    rows = np.zeros((len(item_ids) + 1, dim), np.float32)
    for code, raw in enumerate(item_ids, start=1):
        rows[code] = np.random.default_rng([seed, *raw.encode()]).standard_normal(dim)
    return torch.from_numpy(rows * np.float32(std))


def co_occurrence_start(table: Tensor, histories: Sequence[NDArray[np.int64]]) -> Tensor:
    """Rows moved towards the items they occur with on this client: (V + 1, D).

    Random indexing (Kanerva et al. 2000) on positive pointwise mutual information: each row becomes
    a weighted sum of the *common* rows of its neighbours, and of theirs, so clients that never
    exchange a table still start in one coordinate system. An item without neighbours keeps its
    common row; all rows have the mean length of ``table``.
    """
    weights = _ppmi(_counts(histories, len(table)))
    length: Tensor = torch.linalg.vector_norm(table[1:], dim=1).mean()
    common = _unit(table)
    reached, context = common, torch.zeros_like(common)
    for _ in range(HOPS):
        reached = _unit(weights @ reached)
        context = context + reached
    return _unit(common + MIX * _unit(context)) * length


def _unit(rows: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp(min=1e-12)


def _counts(histories: Sequence[NDArray[np.int64]], size: int) -> Tensor:
    """Co-occurrence within CONTEXT steps, weighted 1 / distance, symmetric: (V + 1, V + 1)."""
    counts = np.zeros((size, size), np.float32)
    for history in histories:
        for gap in range(1, min(CONTEXT, len(history) - 1) + 1):
            np.add.at(counts, (history[:-gap], history[gap:]), np.float32(1 / gap))
    return torch.from_numpy(counts + counts.T)


def _ppmi(counts: Tensor) -> Tensor:
    total, row = counts.sum(), counts.sum(1, keepdim=True)
    ratio = counts * total / (row * row.T).clamp(min=1e-12)
    return torch.log(ratio.clamp(min=1.0))
