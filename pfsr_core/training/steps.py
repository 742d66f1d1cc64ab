"""The steps of a client's training: batches of its windows, and the random numbers of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.items.soft_targets import SoftTargets
from pfsr_core.items.tables import row_numbers
from pfsr_core.models.compressors import SequenceContext
from pfsr_core.models.ops.dropout import draw_bits
from pfsr_core.randomness import noise_generator
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.task import Task
from pfsr_core.training.windows import Windows, batches, training_windows


@dataclass(frozen=True)
class Step:
    """What one optimiser step sees. Items are row numbers of the client's table, 0 is padding.

    Attributes:
        inputs: Items (B, L).
        targets: The item that follows each of them (B, L), 0 where none does.
        bits: Random bits for dropout (B, num_memory_tokens + L, noise_width); None without dropout.
        context: Where each sequence is split, and whose it is.
        negatives: Sampled rows (n,) that the targets compete with; None: with all rows.
        soft: Soft targets (B, L, N); None for hard ones.
        times: Seconds of the inputs (B, L); None for a model that reads none.
    """

    inputs: Tensor
    targets: Tensor
    bits: Tensor | None
    context: SequenceContext
    negatives: Tensor | None
    soft: SoftTargets | None = None
    times: Tensor | None = None


def client_windows(
    task: Task, local_training: LocalTraining, client_data: ClientDataset
) -> Windows:
    """:func:`training_windows` with items as row numbers of the client's table, and their times."""
    windows = training_windows(client_data, local_training.max_length, task.model.reads_times)
    return replace(windows, items=row_numbers(windows.items, task.items.candidates(client_data)))


def steps(task: Task, local_training: LocalTraining, job: Job, windows: Windows) -> Iterator[Step]:
    """All steps of a client's training, in order; the same for any way of taking them."""
    shuffle_generator = torch.Generator().manual_seed(job.stream)
    dropout_generator = noise_generator(job.stream)
    candidates = task.items.candidates(job.data)
    num_candidates = len(candidates)
    soft = None if task.loss.soft_targets is None else task.loss.soft_targets(candidates)
    for _ in range(local_training.settings.local_epochs):
        for batch in batches(windows, local_training.settings.batch_size, shuffle_generator):
            inputs, targets = batch.items[:, :-1], batch.items[:, 1:]
            input_times = None if batch.times is None else batch.times[:, :-1]
            dropout_bits, negative_rows = draw_noise(task, inputs.shape, dropout_generator), None
            split_at = draw_split_points(task, targets, shuffle_generator)
            context = SequenceContext(split_at, batch.users)
            if 0 < local_training.settings.negatives < num_candidates:
                negative_rows = (
                    torch.randperm(num_candidates, generator=shuffle_generator)[
                        : local_training.settings.negatives
                    ]
                    + 1
                )
            yield Step(
                inputs,
                targets,
                dropout_bits,
                context,
                negative_rows,
                soft and soft.of(targets),
                input_times,
            )


def draw_noise(task: Task, shape: tuple[int, ...], generator: np.random.Generator) -> Tensor | None:
    """Random bits for the dropout of one batch.

    Args:
        task: The model.
        shape: Shape (B, L) of the batch.
        generator: Where they are drawn from.

    Returns:
        Int16 (B, num_memory_tokens + L, noise_width), or None for a model without dropout.
    """
    if not task.model.noise_width:
        return None
    batch_rows, num_positions = shape[0], task.model.num_memory_tokens + shape[1]
    return draw_bits((batch_rows, num_positions, task.model.noise_width), generator)


def draw_split_points(task: Task, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Where each sequence is split into old and recent items, drawn uniformly.

    All split points are equally likely, so that one model reads memories of any age (PerSRec).

    Args:
        task: The model.
        targets: Row numbers (B, L), 0 where there is none.
        generator: Where they are drawn from.

    Returns:
        Split points (B,), from 0 to one less than a sequence's targets; 0, without a draw, for a
        model without memory tokens.
    """
    target_counts = (targets > 0).sum(1)
    if not task.model.num_memory_tokens:
        return torch.zeros_like(target_counts)
    return (torch.rand(len(target_counts), generator=generator) * target_counts).long()
