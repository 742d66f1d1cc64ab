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

SAMPLES = 2**14  # of a group's step: larger groups gain nothing

Trained = tuple[Params, Tensor, LossSum]
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
    config: LocalTraining,
    table: Tensor,
    heads: Sequence[Params],
    client_pairs: Sequence[TrainingPairs],
    round_: int,
) -> list[Trained]:
    """The 1-based ``round_`` of every client, each from its own score function.

    ``table`` (V + 1, D) is the one received; nothing is written to it.
    """
    results: dict[int, Trained] = {}
    for chosen in _groups(client_pairs):
        picked = [client_pairs[i] for i in chosen]
        found = _train_group(config, table, [heads[i] for i in chosen], picked, round_)
        results |= zip(chosen, found, strict=True)
    return [results[index] for index in range(len(client_pairs))]


def _groups(client_pairs: Sequence[TrainingPairs]) -> list[list[int]]:
    """Clients of similar size in groups of at most SAMPLES samples a step, most batches first."""
    groups: list[list[int]] = []
    widest = 0
    for index in sorted(
        range(len(client_pairs)), key=lambda i: client_pairs[i].rows.shape, reverse=True
    ):
        widest = max(widest, client_pairs[index].rows.shape[1])
        if not groups or (len(groups[-1]) + 1) * widest > SAMPLES:
            groups.append([])
            widest = client_pairs[index].rows.shape[1]
        groups[-1].append(index)
    return groups


def _train_group(
    config: LocalTraining,
    table: Tensor,
    heads: Sequence[Params],
    client_pairs: Sequence[TrainingPairs],
    round_: int,
) -> list[Trained]:
    steps = config.in_round(round_).settings
    group = _stack(table, heads, client_pairs)
    batches = [len(pairs.rows) for pairs in client_pairs]
    for number in range(batches[0]):
        active = sum(count > number for count in batches)
        _step(group, number, active, steps.learning_rate, steps.item_learning_rate)
    return _unstack(group, client_pairs)


def _step(group: Group, number: int, active: int, rate: float, item_rate: float) -> None:
    """Batch ``number`` of the first ``active`` clients: the score functions, then the rows."""
    places, labels = group.places[:active, number].flatten(), group.labels[:active, number]
    weight, bias, table = group.weight[:active], group.bias[:active], group.rows[:active]
    rows = table.flatten(0, 1).index_select(0, places).view(*labels.shape, -1)
    logits = _logits(rows, weight, bias)
    shares = group.shares[:active, number]
    cross = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    group.losses[:active] += (cross * (shares > 0)).sum(1)
    errors = (logits.sigmoid() - labels) * shares
    weight.sub_((errors[:, None] @ rows)[:, 0], alpha=rate)
    bias.sub_(errors.sum(1), alpha=rate)
    errors = (_logits(rows, weight, bias).sigmoid() - labels) * group.item_shares[:active, number]
    of_rows = table.new_zeros(active * table.shape[1]).scatter_add_(0, places, errors.flatten())
    table.addcmul_(of_rows.view(active, -1, 1), weight[:, None], value=-item_rate)


def _logits(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Of rows (K, B, D), each client's with its own score function: (K, B)."""
    return (rows @ weight[:, :, None])[:, :, 0] + bias[:, None]


def _stack(table: Tensor, heads: Sequence[Params], client_pairs: Sequence[TrainingPairs]) -> Group:
    most = max(len(pairs.codes) for pairs in client_pairs)
    places = [pairs.rows + k * most for k, pairs in enumerate(client_pairs)]
    return Group(
        rows=pad_and_stack([rows_of(table, pairs.codes) for pairs in client_pairs]),
        weight=torch.cat([head[WEIGHT] for head in heads]),
        bias=torch.cat([head[BIAS] for head in heads]),
        losses=table.new_zeros(len(heads)),
        places=_pad(places, torch.long),
        labels=_pad([pairs.labels for pairs in client_pairs], table.dtype),
        shares=_pad([pairs.shares for pairs in client_pairs], table.dtype),
        item_shares=_pad([pairs.item_shares for pairs in client_pairs], table.dtype),
    )


def _pad(parts: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
    """(K, T, B), filled up with zeros: samples of no share, on a row that they do not move."""
    return pad_together([torch.from_numpy(part) for part in parts]).to(dtype)


def _unstack(group: Group, client_pairs: Sequence[TrainingPairs]) -> list[Trained]:
    counts = [int((pairs.shares > 0).sum()) for pairs in client_pairs]
    return [
        (
            {WEIGHT: group.weight[k : k + 1].clone(), BIAS: group.bias[k : k + 1].clone()},
            group.rows[k, : len(pairs.codes)].clone(),
            LossSum(float(group.losses[k]), float(counts[k])),
        )
        for k, pairs in enumerate(client_pairs)
    ]
