"""Item tables: which rows one holds, and how they start. Row 0 is padding and stays zero.

A table holds the rows of the items that its owner ranks: the whole catalogue where it is shared,
the items in the client's own histories where it is private.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.params import Params

ItemCodes = NDArray[np.int64]

CONTEXT = 10  # neighbours on each side that count as co-occurring
HOPS = 2  # a neighbour's neighbours count too: small clients see few pairs
OWN_ROWS, TABLE_ROWS = "own rows", "table rows"
MIX = 20.0  # length of the co-occurrence part over the common part


def common_item_table(item_ids: Sequence[str], dim: int, seed: int, std: float) -> Tensor:
    """(V + 1, dim) normal rows, each from a generator of its own: (seed, raw item id).

    The same raw id starts at the same place on every client, whatever its vocabulary is.
    """
    rows = np.zeros((len(item_ids) + 1, dim), np.float32)
    for code, raw in enumerate(item_ids, start=1):
        rows[code] = np.random.default_rng([seed, *raw.encode()]).standard_normal(dim)
    return torch.from_numpy(rows * np.float32(std))


def add_rows(table: Tensor, rows: Tensor, codes: Tensor) -> Tensor:
    """``table`` (V + 1, D) with ``rows`` (n, D) added at ``codes`` (n,).

    Differentiable, and may be mapped by ``torch.func``; rows that fill up have the code 0.
    """
    return table.scatter_add(0, codes[:, None].expand_as(rows), rows)


def item_rows(
    private: ItemCodes, candidates: Tensor, catalogue: ItemCodes | None
) -> dict[str, Tensor]:
    """Which items the rows of a client's item tensors are of.

    OWN_ROWS (n + 1,): where the items ``private`` (n,) of its private tensor stand in its table, of
    the sorted ``candidates`` (V',). TABLE_ROWS (V' + 1,): the codes of its table, absent where it
    sells the whole catalogue. The padding row is the first of both.
    """
    own = row_numbers(torch.from_numpy(np.concatenate([[0], private])), candidates)
    if catalogue is None:
        return {OWN_ROWS: own}
    return {OWN_ROWS: own, TABLE_ROWS: torch.cat([candidates.new_zeros(1), candidates])}


def table_rows(table: Tensor, rows: Params) -> Tensor:
    """A client's rows (V' + 1, D) of the ``table`` (V + 1, D) of the whole catalogue."""
    return table[rows[TABLE_ROWS]] if TABLE_ROWS in rows else table


def row_numbers(codes: Tensor, items: Tensor) -> Tensor:
    """Where ``codes`` of any shape stand in a table that holds the sorted ``items`` (V',).

    Row i + 1 is that of ``items[i]``; 0, padding, stays 0. Every code must be among the items.
    """
    return torch.where(codes > 0, torch.searchsorted(items, codes) + 1, 0)


def co_occurrence_start(
    table: Tensor, length: Tensor, items: ItemCodes, histories: Sequence[ItemCodes]
) -> Tensor:
    """Rows of ``items`` moved towards the items they occur with on this client: (n, D).

    ``table`` (V + 1, D): the common start of the whole catalogue; ``length``: the mean of its rows'
    lengths. ``items`` (n,): distinct codes, sorted, among them every one in ``histories``.

    Random indexing (Kanerva et al. 2000) on positive pointwise mutual information: each row becomes
    a weighted sum of the *common* rows of its neighbours, and of theirs, so clients that never
    exchange a table still start in one coordinate system. An item without neighbours keeps its
    common row; all rows have the given length.
    """
    places = [np.searchsorted(items, history) for history in histories]
    weights = _ppmi(_counts(places, len(items)))
    common = unit_rows(table[torch.from_numpy(items)])
    reached, context = common, torch.zeros_like(common)
    for _ in range(HOPS):
        reached = unit_rows(weights @ reached)
        context = context + reached
    return unit_rows(common + MIX * unit_rows(context)) * length


def mean_length(table: Tensor) -> Tensor:
    """Mean Euclidean length of the rows after the padding row: a scalar."""
    length: Tensor = torch.linalg.vector_norm(table[1:], dim=1).mean()
    return length


def unit_rows(rows: Tensor) -> Tensor:
    """``rows`` (n, D), each divided by its Euclidean length; a row of zeros stays."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp(min=1e-12)


def _counts(histories: Sequence[ItemCodes], size: int) -> Tensor:
    """Co-occurrence within CONTEXT steps, weighted 1 / distance, symmetric: (size, size)."""
    counts = np.zeros((size, size), np.float32)
    for history in histories:
        for gap in range(1, min(CONTEXT, len(history) - 1) + 1):
            np.add.at(counts, (history[:-gap], history[gap:]), np.float32(1 / gap))
    return torch.from_numpy(counts + counts.T)


def _ppmi(counts: Tensor) -> Tensor:
    total, row = counts.sum(), counts.sum(1, keepdim=True)
    ratio = counts * total / (row * row.T).clamp(min=1e-12)
    return torch.log(ratio.clamp(min=1.0))
