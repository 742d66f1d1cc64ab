"""Training of many clients' item scorers as one program, on the rows that each of them touches.

The gradients of the scorer are written out: of a batch with errors e = (sigmoid(logit) - label)
times the samples' shares, ``e @ E`` for w, their sum for b, and ``e w`` for the row of each sample.
All clients of a group take a step together on their own rows; what a client does not touch is
neither copied nor computed. Since all samples of a client move rows along one w, a step adds an
outer product: the errors of each row, times w. Each client ends
where :func:`pfsr_core.training.item_scorer.train_scorer` would have left it, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pfsr_core.models.item_scorer import BIAS, WEIGHT
from pfsr_core.params import Params
from pfsr_core.training.item_scorer import TrainingPairs, rows_of
from pfsr_core.training.local import LocalTraining, LossSum
from pfsr_core.training.stacking import pad_and_stack, pad_together

SAMPLES_PER_STEP = 2**14  # of a group's step: larger groups gain nothing

TrainedScorer = tuple[Params, Tensor, LossSum]
"""A client's score function, its rows (R, D) of its pairs' items, and its losses."""


@dataclass
class Group:
    """Clients that train together, those with most batches first.

    ``rows`` (K, R, D), ``weight`` (K, D), ``bias`` (K,), ``losses`` (K,) are written in place.
    ``places`` (K, T, B): rows of the samples, counted through all clients; ``labels``, ``shares``,
    ``item_shares`` (K, T, B).
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor
    losses: Tensor
    places: Tensor
    labels: Tensor
    shares: Tensor
    item_shares: Tensor


def train_scorers(
    local_training: LocalTraining,
    received_table: Tensor,
    heads: Sequence[Params],
    client_pairs: Sequence[TrainingPairs],
    round_: int,
) -> list[TrainedScorer]:
    """The 1-based ``round_`` of every client, each from its own score function.

    ``received_table`` (V + 1, D) is the one received; nothing is written to it.
    """
    results_by_client: dict[int, TrainedScorer] = {}
    for group_indices in _groups(client_pairs):
        group_pairs = [client_pairs[i] for i in group_indices]
        group_results = _train_group(
            local_training, received_table, [heads[i] for i in group_indices], group_pairs, round_
        )
        results_by_client |= zip(group_indices, group_results, strict=True)
    return [results_by_client[client_index] for client_index in range(len(client_pairs))]


def _groups(client_pairs: Sequence[TrainingPairs]) -> list[list[int]]:
    """Groups of clients of similar size, those with most batches first.

    A step of a group has at most SAMPLES_PER_STEP samples.
    """
    groups: list[list[int]] = []
    widest_batch = 0
    for client_index in sorted(
        range(len(client_pairs)), key=lambda i: client_pairs[i].rows.shape, reverse=True
    ):
        widest_batch = max(widest_batch, client_pairs[client_index].rows.shape[1])
        if not groups or (len(groups[-1]) + 1) * widest_batch > SAMPLES_PER_STEP:
            groups.append([])
            widest_batch = client_pairs[client_index].rows.shape[1]
        groups[-1].append(client_index)
    return groups


def _train_group(
    local_training: LocalTraining,
    received_table: Tensor,
    heads: Sequence[Params],
    client_pairs: Sequence[TrainingPairs],
    round_: int,
) -> list[TrainedScorer]:
    round_settings = local_training.in_round(round_).settings
    group = _stack(received_table, heads, client_pairs)
    batch_counts = [len(pairs.rows) for pairs in client_pairs]
    for batch_number in range(batch_counts[0]):
        num_active = sum(batch_count > batch_number for batch_count in batch_counts)
        _step(
            group,
            batch_number,
            num_active,
            round_settings.learning_rate,
            round_settings.item_learning_rate,
        )
    return _unstack(group, client_pairs)


def _step(
    group: Group, batch_number: int, num_active: int, learning_rate: float, item_rate: float
) -> None:
    """One batch of the first ``num_active`` clients: the score functions first, then the rows.

    Writes the parameters and losses of ``group`` in place.
    """
    sample_rows = group.places[:num_active, batch_number].flatten()
    labels = group.labels[:num_active, batch_number]
    weight = group.weight[:num_active]
    bias = group.bias[:num_active]
    row_tables = group.rows[:num_active]
    sample_vectors = row_tables.flatten(0, 1).index_select(0, sample_rows).view(*labels.shape, -1)
    logits = _logits(sample_vectors, weight, bias)
    shares = group.shares[:num_active, batch_number]
    cross_entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    group.losses[:num_active] += (cross_entropy * (shares > 0)).sum(1)
    errors = (logits.sigmoid() - labels) * shares
    weight.sub_((errors[:, None] @ sample_vectors)[:, 0], alpha=learning_rate)
    bias.sub_(errors.sum(1), alpha=learning_rate)
    errors = (_logits(sample_vectors, weight, bias).sigmoid() - labels) * group.item_shares[
        :num_active, batch_number
    ]
    row_errors = row_tables.new_zeros(num_active * row_tables.shape[1]).scatter_add_(
        0, sample_rows, errors.flatten()
    )
    row_tables.addcmul_(row_errors.view(num_active, -1, 1), weight[:, None], value=-item_rate)


def _logits(sample_vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of rows (K, B, D), each client's with its own score function: (K, B)."""
    return (sample_vectors @ weight[:, :, None])[:, :, 0] + bias[:, None]


def _stack(
    received_table: Tensor, heads: Sequence[Params], client_pairs: Sequence[TrainingPairs]
) -> Group:
    max_rows = max(len(pairs.codes) for pairs in client_pairs)
    sample_rows = [pairs.rows + k * max_rows for k, pairs in enumerate(client_pairs)]
    return Group(
        rows=pad_and_stack([rows_of(received_table, pairs.codes) for pairs in client_pairs]),
        weight=torch.cat([head[WEIGHT] for head in heads]),
        bias=torch.cat([head[BIAS] for head in heads]),
        losses=received_table.new_zeros(len(heads)),
        places=_pad(sample_rows, torch.long),
        labels=_pad([pairs.labels for pairs in client_pairs], received_table.dtype),
        shares=_pad([pairs.shares for pairs in client_pairs], received_table.dtype),
        item_shares=_pad([pairs.item_shares for pairs in client_pairs], received_table.dtype),
    )


def _pad(pair_arrays: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
    """(K, T, B), filled up with zeros: samples of no share, on a row that they do not move."""
    return pad_together([torch.from_numpy(pair_array) for pair_array in pair_arrays]).to(dtype)


def _unstack(group: Group, client_pairs: Sequence[TrainingPairs]) -> list[TrainedScorer]:
    sample_counts = [int((pairs.shares > 0).sum()) for pairs in client_pairs]
    return [
        (
            {WEIGHT: group.weight[k : k + 1].clone(), BIAS: group.bias[k : k + 1].clone()},
            group.rows[k, : len(pairs.codes)].clone(),
            LossSum(float(group.losses[k]), float(sample_counts[k])),
        )
        for k, pairs in enumerate(client_pairs)
    ]
