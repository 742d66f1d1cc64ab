"""Semantic soft targets: part of a next item's probability goes to the items most like it.

    a(j|y) = softmax of cos(t_j, t_y) / temperature over the K items j nearest to y, y left out
    q      = (1 - share) onehot(y) + share a(.|y)           loss = - sum_j q_j log p_j

``t`` are public text vectors, and only items that the client ranks are neighbours. Clients with
other items then learn from like targets (semantic soft cross-entropy, S2CE, of FeCoSR, arXiv
2604.13573, whose loss is not public in full: this form is ours). An item without a text, or without
any neighbour, keeps its one-hot target.

Where several items are equally near, who is among the K is decided by the raw ids, so the order of
the items does not matter, and otherwise for every y, so none becomes everybody's neighbour.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

SIMILARITIES = 2**22  # numbers of the similarity matrix in memory at once: 16 MB
TABLES = 64  # of the clients seen last that are kept
TIE = 1e-4  # cosines that differ by less are equally near


@dataclass(frozen=True)
class SoftTargets:
    """For each item, who shares its probability.

    ``rows`` (..., N): row numbers of the client's item table; ``weights`` (..., N): their part of
    q, together the share or zero. Places that are not needed have row 1 and weight zero.
    """

    rows: Tensor
    weights: Tensor

    def of(self, targets: Tensor) -> SoftTargets:
        """Those of ``targets`` (...), row numbers: (..., N)."""
        return SoftTargets(self.rows[targets], self.weights[targets])


SoftTargetsOf = Callable[[Tensor], SoftTargets]
"""Sorted item codes that a client ranks (V',) -> those of its table's rows, padding first."""


def semantic_targets(
    vectors: Tensor, item_ids: Sequence[str], share: float, neighbours: int, temperature: float
) -> SoftTargetsOf:
    """Soft targets by the rows of ``vectors`` (V + 1, S), padding first, zero without a text.

    ``item_ids[code - 1]``: raw ids. A table of (V' + 1, ``neighbours``) is made for each set of
    candidates, and the last ones are kept.
    """
    unit = torch.nn.functional.normalize(vectors, dim=1)
    order = torch.tensor([0, *(zlib.crc32(raw.encode()) for raw in item_ids)]) / 2**32
    width = min(neighbours, max(1, len(item_ids) - 1))

    @lru_cache(maxsize=TABLES)
    def table(candidates: bytes) -> SoftTargets:
        codes = torch.from_numpy(np.frombuffer(candidates, np.int64).copy())
        known = unit[codes].any(1)
        rows = torch.ones(len(codes) + 1, width, dtype=torch.long)
        weights = torch.zeros(len(codes) + 1, width)
        step = max(1, SIMILARITIES // max(1, len(codes)))
        for part in torch.arange(len(codes)).split(step):
            near, mass = _nearest(unit[codes], order[codes], known, part, width)
            rows[part + 1, : near.shape[1]] = near + 1
            weights[part + 1, : near.shape[1]] = share * _softmax(mass / temperature)
        return SoftTargets(rows, weights)

    return lambda candidates: table(candidates.numpy().tobytes())


def _nearest(
    unit: Tensor, order: Tensor, known: Tensor, part: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """The nearest of all items to those in ``part`` (P,), and their cosines, -inf for none."""
    cosines = unit[part] @ unit.T
    apart = known[part, None] & known & (part[:, None] != torch.arange(len(unit)))
    cosines = cosines.masked_fill(~apart, -torch.inf)
    preferred = cosines + TIE * ((order[part, None] + order) % 1)
    near = preferred.topk(min(width, len(unit)), dim=1).indices
    return near, cosines.gather(1, near)


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension; zeros where all is -inf."""
    return torch.softmax(scores, dim=1).nan_to_num(0.0)
