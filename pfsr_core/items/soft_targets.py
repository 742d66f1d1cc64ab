"""Semantic soft targets: part of a next item's probability goes to the items most like it.

    a(j|y) = softmax of cos(t_j, t_y) / temperature over the K items j nearest to y, y left out
    q      = (1 - share) onehot(y) + share a(.|y)           loss = - sum_j q_j log p_j

``t`` are public text vectors, and only items that the client ranks are neighbours. Clients with
other items then learn from like targets (semantic soft cross-entropy, S2CE, of FeCoSR, arXiv
2604.13573, whose loss is not public in full: this form is ours). An item without a text, or without
any neighbour, keeps its one-hot target.

Where several items are equally near, who is among the K is decided by the raw ids, so the order of
the items does not matter, and otherwise for every y, so none becomes a neighbour of all.
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

    def of(self, target_rows: Tensor) -> SoftTargets:
        """Those of ``target_rows`` (...), row numbers: (..., N)."""
        return SoftTargets(self.rows[target_rows], self.weights[target_rows])


SoftTargetsOf = Callable[[Tensor], SoftTargets]
"""Sorted item codes that a client ranks (V',) -> those of its table's rows, padding first."""


def semantic_targets(
    text_rows: Tensor,
    item_ids: Sequence[str],
    neighbour_share: float,
    num_neighbours: int,
    temperature: float,
) -> SoftTargetsOf:
    """Soft targets from text vectors.

    A table of (V' + 1, ``num_neighbours``) is made for each set of candidates; the latest are
    cached.

    Args:
        text_rows: Text vectors (V + 1, S), the padding row first, zero without a text.
        item_ids: Raw ids, ``item_ids[code - 1]`` that of an item code.
        neighbour_share: Part of the probability that neighbours get.
        num_neighbours: K, neighbours of an item.
        temperature: Of the softmax over cosines.

    Returns:
        A function of the sorted candidate codes (V',).
    """
    unit_vectors = torch.nn.functional.normalize(text_rows, dim=1)
    tie_order = torch.tensor([0, *(zlib.crc32(raw_id.encode()) for raw_id in item_ids)]) / 2**32
    num_columns = min(num_neighbours, max(1, len(item_ids) - 1))

    @lru_cache(maxsize=TABLES)
    def table(candidates: bytes) -> SoftTargets:
        item_codes = torch.from_numpy(np.frombuffer(candidates, np.int64).copy())
        has_text = unit_vectors[item_codes].any(1)
        neighbour_rows = torch.ones(len(item_codes) + 1, num_columns, dtype=torch.long)
        neighbour_weights = torch.zeros(len(item_codes) + 1, num_columns)
        chunk_size = max(1, SIMILARITIES // max(1, len(item_codes)))
        for item_chunk in torch.arange(len(item_codes)).split(chunk_size):
            nearest_rows, nearest_cosines = _nearest(
                unit_vectors[item_codes], tie_order[item_codes], has_text, item_chunk, num_columns
            )
            # An item without neighbours has -inf alone, hence nan, and gets weights of zero.
            shares = torch.softmax(nearest_cosines / temperature, dim=1).nan_to_num(0.0)
            neighbour_rows[item_chunk + 1, : nearest_rows.shape[1]] = nearest_rows + 1
            neighbour_weights[item_chunk + 1, : nearest_rows.shape[1]] = neighbour_share * shares
        return SoftTargets(neighbour_rows, neighbour_weights)

    return lambda candidates: table(candidates.numpy().tobytes())


def _nearest(
    unit_vectors: Tensor, tie_order: Tensor, has_text: Tensor, item_chunk: Tensor, num_columns: int
) -> tuple[Tensor, Tensor]:
    """The nearest items to those in ``item_chunk`` (P,), and their cosines, -inf for none."""
    cosines = unit_vectors[item_chunk] @ unit_vectors.T
    is_neighbour = (
        has_text[item_chunk, None]
        & has_text
        & (item_chunk[:, None] != torch.arange(len(unit_vectors)))
    )
    cosines = cosines.masked_fill(~is_neighbour, -torch.inf)
    tie_broken = cosines + TIE * ((tie_order[item_chunk, None] + tie_order) % 1)
    nearest_rows = tie_broken.topk(min(num_columns, len(unit_vectors)), dim=1).indices
    return nearest_rows, cosines.gather(1, nearest_rows)
