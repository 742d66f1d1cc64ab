"""Training of the item scorer on one client: pairs, steps, and the plain loop.

A batch takes two steps of gradient descent, the score function first and then, with the new score
function, the rows of the item table (Zhang et al., IJCAI 2023, algorithm 1). The loss is binary
cross-entropy over the client's interactions and ``negatives_per_positive`` sampled negatives for
each, drawn anew every round.
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
    local_training: LocalTraining,
    client_data: ClientDataset,
    round_: int,
    *,
    negatives_per_positive: int,
    by_row: bool,
) -> TrainingPairs:
    """What a client trains on in a round: pairs drawn and shuffled in its own stream.

    Args:
        local_training: How the client trains.
        client_data: The client.
        round_: The 1-based round.
        negatives_per_positive: Number of items of label 0 drawn for each of label 1.
        by_row: A step on an item's row is the mean of the gradients of the row's own samples.
            Otherwise of those of the whole batch, as published: of n samples that is smaller by n
            over the row's share of them, which the published code makes up for with a learning
            rate of 13,456.
    """
    client_seed = stream_seed(local_training.seed, "client", client_data.client, round_)
    generator = np.random.Generator(np.random.SFC64(client_seed))
    item_codes, labels = training_pairs(client_data, negatives_per_positive, generator)
    unique_codes, code_positions = np.unique(item_codes, return_inverse=True)
    sample_order = _batches(len(item_codes), local_training.settings, generator)
    is_drawn = sample_order >= 0
    pair_rows = np.where(is_drawn, code_positions[sample_order], 0)
    shares = is_drawn / np.maximum(is_drawn.sum(1, keepdims=True), 1)
    item_shares = is_drawn / _occurrences(pair_rows, is_drawn) if by_row else shares
    return TrainingPairs(
        codes=unique_codes.astype(np.int64),
        rows=pair_rows,
        labels=np.where(is_drawn, labels[sample_order], 0).astype(np.float32),
        shares=shares.astype(np.float32),
        item_shares=item_shares.astype(np.float32),
    )


def _batches(
    num_samples: int, settings: TrainSettings, generator: np.random.Generator
) -> ItemArray:
    """Sample positions (T, B) of all batches, pass by pass, each pass shuffled.

    -1 where the last batch of a pass is filled up.
    """
    batch_width = min(num_samples, settings.batch_size)
    if not batch_width:
        return np.empty((0, 0), np.int64)
    epoch_orders = np.full(
        (settings.local_epochs, -(-num_samples // batch_width) * batch_width), -1, np.int64
    )
    for epoch_order in epoch_orders:
        epoch_order[:num_samples] = generator.permutation(num_samples)
    return epoch_orders.reshape(-1, batch_width)


def _occurrences(pair_rows: ItemArray, is_drawn: NDArray[np.bool_]) -> ItemArray:
    """How often each sample's row occurs in its batch, at least 1: (T, B)."""
    num_rows = int(pair_rows.max(initial=0)) + 1
    row_keys = pair_rows + num_rows * np.arange(len(pair_rows))[:, None]
    row_counts = np.bincount(row_keys[is_drawn], minlength=num_rows * len(pair_rows))
    occurrences: ItemArray = np.maximum(row_counts[row_keys], 1)
    return occurrences


def train_scorer(
    local_training: LocalTraining, params: Params, client_pairs: TrainingPairs, round_: int
) -> tuple[Params, LossSum]:
    """The plain loop over a whole table, by autograd: new parameters, writes none of its inputs.

    The reference: other ways to train must end with the same parameters.
    """
    round_settings, loss_sum = local_training.in_round(round_).settings, LossSum()
    leaf_params = {
        tensor_name: tensor.requires_grad_() for tensor_name, tensor in clone(params).items()
    }
    head_optimizer = torch.optim.SGD(
        [leaf_params[WEIGHT], leaf_params[BIAS]], lr=round_settings.learning_rate
    )
    item_optimizer = torch.optim.SGD([leaf_params[ITEMS]], lr=round_settings.item_learning_rate)
    item_codes = torch.from_numpy(client_pairs.codes)
    pair_arrays = (
        client_pairs.rows,
        client_pairs.labels,
        client_pairs.shares,
        client_pairs.item_shares,
    )
    for batch_rows, labels, shares, item_shares in zip(
        *map(torch.from_numpy, pair_arrays), strict=True
    ):
        for optimizer, step_shares in ((head_optimizer, shares), (item_optimizer, item_shares)):
            logits = item_logits(leaf_params, item_codes[batch_rows])
            cross_entropy = F.binary_cross_entropy_with_logits(
                logits, labels.to(logits.dtype), reduction="none"
            )
            if optimizer is head_optimizer:
                num_samples = float((shares > 0).sum())
                loss_sum = loss_sum.add(float((cross_entropy.detach() * shares).sum()), num_samples)
            optimizer.zero_grad()
            (cross_entropy * step_shares).sum().backward()
            optimizer.step()
    return {tensor_name: tensor.detach() for tensor_name, tensor in leaf_params.items()}, loss_sum


def rows_of(item_table: Tensor, item_codes: ItemArray) -> Tensor:
    """Rows (R, D) of a whole table."""
    return item_table.index_select(0, torch.from_numpy(item_codes))


def item_scorer_task(
    item_ids: Sequence[str], embedding_dim: int, seed: int, item_std: float
) -> Task:
    """Over the items ``item_ids``; all clients start with one head.

    ``item_std``: spread of a row's coordinates at the start.
    """
    initial_table = common_item_table(item_ids, embedding_dim, seed, item_std)
    initial_head = first_head(embedding_dim, stream_seed(seed, "score function"))
    return Task(
        model=ModelFunctions(make_apply(ItemScorer(len(item_ids), embedding_dim))),
        partition=ParamPartition(
            names=Partition.of(
                [ITEMS, *initial_head], private=lambda tensor_name: tensor_name != ITEMS
            ),
            init_shared=lambda: {ITEMS: initial_table.clone()},
            init_private=lambda _data: clone(initial_head),
        ),
        items=ItemFunctions(
            candidates=all_candidates,
            unseen_rows=lambda _data, codes: initial_table[torch.from_numpy(codes)],
            materialize=lambda params, index: {**params, ITEMS: table_rows(params[ITEMS], index)},
        ),
    )
