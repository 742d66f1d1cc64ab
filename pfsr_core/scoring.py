"""A trained model as a scorer: histories in, scores of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.evaluation.client import Scorer
from pfsr_core.local_training import Task, private_codes
from pfsr_core.models.next_item import ITEMS, pad_right, pad_times
from pfsr_core.params import Params


def make_scorer(task: Task, params: Params, data: ClientDataset, max_length: int) -> Scorer:
    """Scores of the whole catalogue for histories: (U, V + 1); -inf for what cannot be ranked.

    Without their times a model that reads times takes all gaps between interactions for zero.
    """
    candidates, model = task.candidates(data), effective_model(task, params, data)

    @torch.no_grad()
    def score(histories: Sequence[ItemArray], times: Sequence[ItemArray] = ()) -> Tensor:
        codes, lengths = pad_right(histories, max_length)
        seconds = pad_times(times, codes) if task.reads_times and times else None
        items, table = with_unseen(task, model[ITEMS], data, codes)
        hidden = task.apply({**model, ITEMS: table}, items, None, seconds)
        last = hidden[torch.arange(len(items)), (lengths - 1).clamp(min=0)]
        scores = torch.full((len(items), data.num_items + 1), -torch.inf)
        scores[:, candidates] = last @ model[ITEMS][1:].T
        return scores

    return score


@torch.no_grad()
def effective_model(task: Task, params: Params, data: ClientDataset) -> Params:
    """A client's whole parameters as the model takes them: see ``Task.effective``."""
    return task.effective(params, private_codes(data))


def with_unseen(
    task: Task, table: Tensor, data: ClientDataset, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """``codes`` as row numbers, and the client's table with a row for each of them.

    Rows of items that the client's table (V' + 1, D) lacks come after its own.
    """
    known = task.candidates(data).numpy()
    unseen = np.setdiff1d(codes.numpy(), known)
    unseen = unseen[unseen > 0]
    numbers = torch.zeros(data.num_items + 1, dtype=torch.long)
    numbers[np.concatenate([known, unseen])] = torch.arange(1, len(known) + len(unseen) + 1)
    if len(unseen):
        table = torch.cat([table, task.unseen_rows(data, unseen).to(table.dtype)])
    return numbers[codes], table
