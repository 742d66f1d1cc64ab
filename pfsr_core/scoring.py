"""A trained model as a scorer: histories in, scores of the whole catalogue out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.evaluation.client import Scorer
from pfsr_core.local_training import Task, private_codes
from pfsr_core.models.compressors import COVERED, Rows
from pfsr_core.models.next_item import ITEMS, pad_right
from pfsr_core.params import Params
from pfsr_core.served_users import UserMemory


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


@torch.no_grad()
def score_from_memory(  # noqa: PLR0913 - whose model, and who asks
    task: Task,
    params: Params,
    data: ClientDataset,
    max_length: int,
    history: ItemArray,
    user: int,
    memory: UserMemory | None,
) -> tuple[Tensor, UserMemory]:
    """Scores of the catalogue (V + 1,) as :func:`make_scorer`'s, and the memory to go on from.

    Only items that ``memory`` does not stand for are read; it is made where there is none, or where
    it does not serve for this history any more. ``history`` is not empty; ``user``: see ``Scorer``.
    """
    assert task.serving is not None
    model, serving = effective_model(task, params, data), task.serving
    begin = serving.begin(len(history), None if memory is None else memory.covered)
    fits = memory is not None and memory.covered == begin
    first = begin if fits else task.first_read(len(history), max_length)
    codes = torch.from_numpy(history[first:])[None]
    items, table = with_unseen(task, model[ITEMS], data, codes)
    reading = {**model, ITEMS: table}
    if memory is not None and fits:
        before = memory.tensors
    else:
        before = serving.compress(reading, items[:, : begin - first], torch.tensor([user]))
    last, after = serving.recall(reading, items[:, begin - first :], before)
    scores = torch.full((data.num_items + 1,), -torch.inf)
    scores[task.candidates(data)] = model[ITEMS][1:] @ last[0]
    covered = begin + int(after[COVERED] - before[COVERED])
    return scores, UserMemory(covered, after)


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
