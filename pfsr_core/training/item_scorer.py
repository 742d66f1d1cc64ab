"""Training of the item scorer on one client: pairs, steps, and the plain loop.

A batch takes two steps of gradient descent, the score function first and then, with the new score
function, the rows of the item table (Zhang et al., IJCAI 2023, algorithm 1). The loss is binary
cross-entropy over the client's interactions and as many sampled negatives as
``negatives_per_positive`` says, drawn anew every round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.data.negatives import training_pairs
from pfsr_core.items.functions import ItemFunctions, all_candidates
from pfsr_core.items.tables import common_item_table, table_rows
from pfsr_core.models.item_scorer import BIAS, WEIGHT, ItemScorer, first_head, item_logits
from pfsr_core.models.next_item import make_apply
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, Partition, clone
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.sections import TrainSettings
from pfsr_core.training.local import LocalTraining, LossSum
from pfsr_core.training.task import ModelFunctions, ParamPartition, Task


@dataclass(frozen=True)
class TrainingPairs:
    """All batches of a client's training in one round, filled up to T batches of B samples.

    ``codes`` (R,): the items that occur, sorted. ``rows`` (T, B): places among them; ``labels``
    (T, B). ``shares`` (T, B): weight of a sample in the step on the score function, and
    ``item_shares`` in the step on its row. Both are 0 where a batch is filled up.
    """

    codes: ItemArray
    rows: NDArray[np.int64]
    labels: NDArray[np.float32]
    shares: NDArray[np.float32]
    item_shares: NDArray[np.float32]


def draw_training_pairs(
    config: LocalTraining,
    data: ClientDataset,
    round_: int,
    *,
    negatives_per_positive: int,
    by_row: bool,
) -> TrainingPairs:
    """What a client trains on in a round: pairs drawn and shuffled in its own stream.

    Args:
        config: How the client trains.
        data: The client.
        round_: The 1-based round.
        negatives_per_positive: Number of items of label 0 drawn for each of label 1.
        by_row: A step on an item's row is the mean of the gradients of the row's own samples.
            Otherwise of those of the whole batch, as published: of n samples that is smaller by n
            over the row's share of them, which the published code makes up for with a learning
            rate of 13,456.
    """
    seed = stream_seed(config.seed, "client", data.client, round_)
    generator = np.random.Generator(np.random.SFC64(seed))
    items, labels = training_pairs(data, negatives_per_positive, generator)
    codes, places = np.unique(items, return_inverse=True)
    order = _batches(len(items), config.settings, generator)
    drawn = order >= 0
    rows = np.where(drawn, places[order], 0)
    shares = drawn / np.maximum(drawn.sum(1, keepdims=True), 1)
    item_shares = drawn / _occurrences(rows, drawn) if by_row else shares
    return TrainingPairs(
        codes=codes.astype(np.int64),
        rows=rows,
        labels=np.where(drawn, labels[order], 0).astype(np.float32),
        shares=shares.astype(np.float32),
        item_shares=item_shares.astype(np.float32),
    )


def _batches(count: int, settings: TrainSettings, generator: np.random.Generator) -> ItemArray:
    """Positions of ``count`` samples in shuffled passes: (T, B), -1 where a batch is filled up."""
    width = min(count, settings.batch_size)
    if not width:
        return np.empty((0, 0), np.int64)
    epochs = np.full((settings.local_epochs, -(-count // width) * width), -1, np.int64)
    for epoch in epochs:
        epoch[:count] = generator.permutation(count)
    return epochs.reshape(-1, width)


def _occurrences(rows: ItemArray, drawn: NDArray[np.bool_]) -> ItemArray:
    """How often each sample's row occurs in its batch, at least 1: (T, B)."""
    width = int(rows.max(initial=0)) + 1
    keys = rows + width * np.arange(len(rows))[:, None]
    counts = np.bincount(keys[drawn], minlength=width * len(rows))
    occurrences: ItemArray = np.maximum(counts[keys], 1)
    return occurrences


def train_scorer(
    config: LocalTraining, params: Params, pairs: TrainingPairs, round_: int
) -> tuple[Params, LossSum]:
    """The plain loop over a whole table, by autograd: new parameters, writes none of its inputs.

    The reference: other ways to train must end with the same parameters.
    """
    steps, losses = config.in_round(round_).settings, LossSum()
    leaves = {name: tensor.requires_grad_() for name, tensor in clone(params).items()}
    head = torch.optim.SGD([leaves[WEIGHT], leaves[BIAS]], lr=steps.learning_rate)
    items = torch.optim.SGD([leaves[ITEMS]], lr=steps.item_learning_rate)
    codes = torch.from_numpy(pairs.codes)
    parts = (pairs.rows, pairs.labels, pairs.shares, pairs.item_shares)
    for rows, labels, shares, item_shares in zip(*map(torch.from_numpy, parts), strict=True):
        for optimizer, weights in ((head, shares), (items, item_shares)):
            logits = item_logits(leaves, codes[rows])
            cross = F.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="none"
            )
            if optimizer is head:
                count = float((shares > 0).sum())
                losses = losses.add(float((cross.detach() * shares).sum()), count)
            optimizer.zero_grad()
            (cross * weights).sum().backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}, losses


def rows_of(table: Tensor, codes: ItemArray) -> Tensor:
    """Rows (R, D) of a whole table."""
    return table.index_select(0, torch.from_numpy(codes))


def item_scorer_task(item_ids: Sequence[str], dim: int, seed: int, item_std: float) -> Task:
    """Over the items ``item_ids``; all clients start with one head.

    ``item_std``: spread of a row's coordinates at the start.
    """
    table = common_item_table(item_ids, dim, seed, item_std)
    head = first_head(dim, stream_seed(seed, "score function"))
    return Task(
        model=ModelFunctions(make_apply(ItemScorer(len(item_ids), dim))),
        partition=ParamPartition(
            names=Partition.of([ITEMS, *head], private=lambda name: name != ITEMS),
            init_shared=lambda: {ITEMS: table.clone()},
            init_private=lambda _data: clone(head),
        ),
        items=ItemFunctions(
            candidates=all_candidates,
            unseen_rows=lambda _data, codes: table[torch.from_numpy(codes)],
            materialize=lambda params, index: {**params, ITEMS: table_rows(params[ITEMS], index)},
        ),
    )
