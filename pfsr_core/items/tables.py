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

CONTEXT_ITEMS = 10  # neighbours on each side that count as co-occurring
HOPS = 2  # a neighbour's neighbours count too: small clients see few pairs
OWN_ROWS, TABLE_ROWS = "own rows", "table rows"
MIX = 20.0  # length of the co-occurrence part over the common part


def common_item_table(item_ids: Sequence[str], dim: int, run_seed: int, row_std: float) -> Tensor:
    """Normal rows, each from a generator of its own that is seeded with the raw item id.

    The same raw id has the same start on every client, whatever its catalogue is.

    Args:
        item_ids: Raw ids by item code.
        dim: D, width of a row.
        run_seed: Seed of the run, part of every row's seed.
        row_std: Standard deviation of an entry.

    Returns:
        The table (V + 1, D); its first row is padding and zero.
    """
    padded_rows = np.zeros((len(item_ids) + 1, dim), np.float32)
    for code, raw_id in enumerate(item_ids, start=1):
        padded_rows[code] = np.random.default_rng([run_seed, *raw_id.encode()]).standard_normal(dim)
    return torch.from_numpy(padded_rows * np.float32(row_std))


def add_rows(item_table: Tensor, rows: Tensor, item_codes: Tensor) -> Tensor:
    """A table with some rows changed; differentiable, and may be mapped by ``torch.func``.

    Args:
        item_table: (V + 1, D).
        rows: What is added (n, D).
        item_codes: Row of the table for each of them (n,), 0 for padding.

    Returns:
        The new table (V + 1, D).
    """
    return item_table.scatter_add(0, item_codes[:, None].expand_as(rows), rows)


def item_rows(
    private_items: ItemCodes, candidates: Tensor, catalogue_codes: ItemCodes | None
) -> dict[str, Tensor]:
    """Which items the rows of a client's item tensors are of.

    OWN_ROWS (n + 1,): where the ``private_items`` (n,) of its private tensor stand in its table,
    of the sorted ``candidates`` (V',). TABLE_ROWS (V' + 1,): the codes of its table, absent where
    it ranks the whole catalogue. The padding row is the first of both.
    """
    own_rows = row_numbers(torch.from_numpy(np.concatenate([[0], private_items])), candidates)
    if catalogue_codes is None:
        return {OWN_ROWS: own_rows}
    return {OWN_ROWS: own_rows, TABLE_ROWS: torch.cat([candidates.new_zeros(1), candidates])}


def table_rows(item_table: Tensor, item_index: Params) -> Tensor:
    """A client's rows (V' + 1, D) of the ``item_table`` (V + 1, D) of the whole catalogue."""
    return item_table[item_index[TABLE_ROWS]] if TABLE_ROWS in item_index else item_table


def row_numbers(item_codes: Tensor, item_candidates: Tensor) -> Tensor:
    """Row numbers of items in a client's table: i + 1 for ``item_candidates[i]``.

    Args:
        item_codes: Codes of any shape, each among the candidates or 0, padding, which stays 0.
        item_candidates: Sorted codes of the table's rows (V',).

    Returns:
        Row numbers in the shape of ``item_codes``.
    """
    return torch.where(item_codes > 0, torch.searchsorted(item_candidates, item_codes) + 1, 0)


def co_occurrence_start(
    item_table: Tensor, row_length: Tensor, own_items: ItemCodes, histories: Sequence[ItemCodes]
) -> Tensor:
    """Rows of ``own_items`` moved towards the items they occur with on this client: (n, D).

    Random indexing (Kanerva et al. 2000) on positive pointwise mutual information: each row becomes
    a weighted sum of the *common* rows of its neighbours, and of theirs, so clients that never
    exchange a table still start in one coordinate system. An item without neighbours keeps its
    common row; all rows have the given length.

    Args:
        item_table: The common start of the whole catalogue (V + 1, D).
        row_length: Length of the result's rows, the mean of the table's.
        own_items: Distinct sorted codes (n,), among them every one in ``histories``.
        histories: Training histories of the client, item codes each.

    Returns:
        The start of the private rows (n, D).
    """
    item_positions = [np.searchsorted(own_items, history) for history in histories]
    neighbour_weights = _ppmi(_counts(item_positions, len(own_items)))
    common_rows = unit_rows(item_table[torch.from_numpy(own_items)])
    reached_rows, context_rows = common_rows, torch.zeros_like(common_rows)
    for _ in range(HOPS):
        reached_rows = unit_rows(neighbour_weights @ reached_rows)
        context_rows = context_rows + reached_rows
    return unit_rows(common_rows + MIX * unit_rows(context_rows)) * row_length


def mean_length(item_table: Tensor) -> Tensor:
    """Mean Euclidean length of the rows after the padding row: a scalar."""
    length: Tensor = torch.linalg.vector_norm(item_table[1:], dim=1).mean()
    return length


def unit_rows(rows: Tensor) -> Tensor:
    """``rows`` (n, D), each divided by its Euclidean length; a row of zeros stays."""
    length: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / length.clamp(min=1e-12)


def _counts(histories: Sequence[ItemCodes], num_items: int) -> Tensor:
    """Co-occurrence within CONTEXT_ITEMS steps, weighted 1 / distance, symmetric: (n, n)."""
    pair_counts = np.zeros((num_items, num_items), np.float32)
    for history in histories:
        for step_gap in range(1, min(CONTEXT_ITEMS, len(history) - 1) + 1):
            np.add.at(
                pair_counts, (history[:-step_gap], history[step_gap:]), np.float32(1 / step_gap)
            )
    return torch.from_numpy(pair_counts + pair_counts.T)


def _ppmi(pair_counts: Tensor) -> Tensor:
    total_count, row_counts = pair_counts.sum(), pair_counts.sum(1, keepdim=True)
    ratio = pair_counts * total_count / (row_counts * row_counts.T).clamp(min=1e-12)
    return torch.log(ratio.clamp(min=1.0))
