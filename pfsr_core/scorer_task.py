"""The item scorer as a task: the item table is shared, the score function is the client's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pfsr_core.local_training import Task, stream_seed
from pfsr_core.models.item_scorer import ItemScorer, first_head
from pfsr_core.models.item_tables import common_item_table, table_rows
from pfsr_core.models.next_item import ITEMS, make_apply
from pfsr_core.params import Partition, clone


def item_scorer_task(item_ids: Sequence[str], dim: int, seed: int, item_std: float) -> Task:
    """Over the items ``item_ids``; all clients start with one head.

    ``item_std``: spread of a row's coordinates at the start.
    """
    table = common_item_table(item_ids, dim, seed, item_std)
    head = first_head(dim, stream_seed(seed, "score function"))
    return Task(
        apply=make_apply(ItemScorer(len(item_ids), dim)),
        noise_width=0,
        partition=Partition.of([ITEMS, *head], private=lambda name: name != ITEMS),
        init_shared=lambda: {ITEMS: table.clone()},
        init_private=lambda _data: clone(head),
        candidates=lambda data: torch.from_numpy(data.catalogue),
        unseen_rows=lambda _data, codes: table[torch.from_numpy(codes)],
        effective=lambda params, rows: {**params, ITEMS: table_rows(params[ITEMS], rows)},
    )
