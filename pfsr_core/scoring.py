"""A trained model as a scorer: histories in, scores of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.evaluation.client import Scorer
from pfsr_core.local_training import Task, private_codes
from pfsr_core.models.compressors import Rows
from pfsr_core.models.next_item import ITEMS, pad_right
from pfsr_core.params import Params


def make_scorer(task: Task, params: Params, data: ClientDataset, max_length: int) -> Scorer:
    """Scores of the whole catalogue for histories: (U, V + 1); -inf for what cannot be ranked."""
    candidates, model = task.candidates(data), effective_model(task, params, data)

    @torch.no_grad()
    def score(histories: Sequence[ItemArray], users: ItemArray | None = None) -> Tensor:
        codes, lengths, cuts = what_is_read(task, histories, max_length)
        whose = torch.zeros_like(lengths) if users is None else torch.from_numpy(users)
        items, table = with_unseen(task, model[ITEMS], data, codes)
        hidden = task.apply({**model, ITEMS: table}, items, None, Rows(cuts, whose))
        last = hidden[torch.arange(len(items)), (lengths - 1).clamp(min=0)]
        scores = torch.full((len(items), data.num_items + 1), -torch.inf)
        scores[:, candidates] = last @ model[ITEMS][1:].T
        return scores

    return score


def what_is_read(
    task: Task, histories: Sequence[ItemArray], max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The part of each history that the model reads: codes (B, L), lengths (B,), cuts (B,)."""
    firsts = [task.first_read(len(history), max_length) for history in histories]
    parts = [history[first:] for history, first in zip(histories, firsts, strict=True)]
    codes, lengths = pad_right(parts, max(map(len, parts), default=1))
    cuts = task.cuts(torch.tensor([len(history) for history in histories]))
    return codes, lengths, (cuts - torch.tensor(firsts)).clamp(min=0)


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
