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
        negatives: Sampled rows (n,) in place of all others; None without sampling.
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


def client_windows(task: Task, config: LocalTraining, data: ClientDataset) -> Windows:
    """:func:`training_windows` with items as row numbers of the client's table, and their times."""
    windows = training_windows(data, config.max_length, task.model.reads_times)
    return replace(windows, items=row_numbers(windows.items, task.items.candidates(data)))


def steps(task: Task, config: LocalTraining, job: Job, windows: Windows) -> Iterator[Step]:
    """All steps of a client's training, in order; the same for any way of taking them."""
    shuffle, noise = torch.Generator().manual_seed(job.stream), noise_generator(job.stream)
    candidates = task.items.candidates(job.data)
    rows = len(candidates)
    soft = None if task.loss.soft_targets is None else task.loss.soft_targets(candidates)
    for _ in range(config.settings.local_epochs):
        for batch in batches(windows, config.settings.batch_size, shuffle):
            inputs, targets = batch.items[:, :-1], batch.items[:, 1:]
            times = None if batch.times is None else batch.times[:, :-1]
            bits, negatives = draw_noise(task, inputs.shape, noise), None
            split_at = draw_split_points(task, targets, shuffle)
            context = SequenceContext(split_at, batch.users)
            if 0 < config.settings.negatives < rows:
                negatives = torch.randperm(rows, generator=shuffle)[: config.settings.negatives] + 1
            yield Step(inputs, targets, bits, context, negatives, soft and soft.of(targets), times)


def draw_noise(task: Task, shape: tuple[int, ...], generator: np.random.Generator) -> Tensor | None:
    """Bits for a batch of ``shape`` (B, L): int16, or None for a model without dropout.

    Their shape is (B, num_memory_tokens + L, noise_width).
    """
    if not task.model.noise_width:
        return None
    rows, length = shape[0], task.model.num_memory_tokens + shape[1]
    return draw_bits((rows, length, task.model.noise_width), generator)


def draw_split_points(task: Task, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Where each row is split into old and recent items: (B,), from 0 to one less than its targets.

    Any place alike, so that one model reads memories of any age (PerSRec). 0 where a model makes
    no difference; nothing is drawn then.
    """
    lengths = (targets > 0).sum(1)
    if not task.model.num_memory_tokens:
        return torch.zeros_like(lengths)
    return (torch.rand(len(lengths), generator=generator) * lengths).long()
