"""Training on one client: windows, steps, and the plain optimiser loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.items.soft_targets import SoftTargets
from pfsr_core.items.tables import row_numbers
from pfsr_core.models.compressors import Rows
from pfsr_core.models.ops.dropout import draw_bits
from pfsr_core.models.parameter_names import BIAS, FACTORS, ITEMS, PROJECTION, RESIDUAL
from pfsr_core.params import Params, clone
from pfsr_core.randomness import noise_generator
from pfsr_core.settings.fields import Value
from pfsr_core.settings.sections import TrainSettings
from pfsr_core.training.fisher import Masks
from pfsr_core.training.losses import next_item_cross_entropy, sampled_cross_entropy
from pfsr_core.training.task import Task, client_rows
from pfsr_core.training.windows import Windows, batches, training_windows


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains.

    Attributes:
        settings: Optimizer, learning rates, epochs and batches.
        max_length: Number of items of a window.
        seed: Seed of the run, of which every client and round has a stream.
    """

    settings: TrainSettings
    max_length: int
    seed: int

    def in_round(self, round_: int) -> LocalTraining:
        """With the learning rates of the 1-based ``round_``."""
        return self.scaled(self.settings.round_decay ** (round_ - 1))

    def scaled(self, scale: float) -> LocalTraining:
        """With all learning rates times ``scale``."""
        rates = (
            "learning_rate",
            "item_learning_rate",
            "residual_learning_rate",
            "projection_learning_rate",
        )
        return self.with_settings(**{rate: getattr(self.settings, rate) * scale for rate in rates})

    def with_settings(self, **changes: Value) -> LocalTraining:
        """With some of its settings changed, by field name."""
        return replace(self, settings=replace(self.settings, **changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ExtraLoss:
    """A loss added to the cross-entropy: ``term(params, context)``, a scalar.

    ``context``: named groups of tensors, what the term knows of this client alone. In a round all
    clients have the same ``term``.
    """

    term: Callable[[Params, Mapping[str, Params]], Tensor]
    context: Mapping[str, Params]


@dataclass(frozen=True)
class Job:
    """One client's training: where it starts, on which data, with which stream of randomness.

    ``frozen`` marks coordinates that must not move; tensors it does not name are free. ``stream``
    seeds batches and dropout.
    """

    params: Params
    data: ClientDataset
    stream: int
    extra_loss: ExtraLoss | None = None
    frozen: Masks | None = None


@dataclass(frozen=True)
class Step:
    """What one optimiser step sees. Items are row numbers of the client's table, 0 is padding.

    ``inputs`` and ``targets`` (B, L); ``bits`` (B, places + L, noise_width) for dropout, None
    without; ``rows``: cuts and users of the B rows; ``negatives`` (n,): sampled rows in place of
    all others, None without sampling. ``times`` (B, L): seconds of the inputs, None for a model
    that reads none. ``soft`` (B, L, N): soft targets, None for hard ones.
    """

    inputs: Tensor
    targets: Tensor
    bits: Tensor | None
    rows: Rows
    negatives: Tensor | None
    soft: SoftTargets | None = None
    times: Tensor | None = None


@dataclass(frozen=True)
class LossSum:
    """Sum of batch losses times their targets, and the number of targets."""

    total: float = 0.0
    count: float = 0.0

    def add(self, mean: float, count: float) -> LossSum:
        return LossSum(self.total + mean * count, self.count + count)


def client_windows(task: Task, config: LocalTraining, data: ClientDataset) -> Windows:
    """:func:`training_windows` with items as row numbers of the client's table, and their times."""
    windows = training_windows(data, config.max_length, task.reads_times)
    return replace(windows, items=row_numbers(windows.items, task.candidates(data)))


def steps(task: Task, config: LocalTraining, job: Job, windows: Windows) -> Iterator[Step]:
    """All steps of a client's training, in order; the same for any way of taking them."""
    shuffle, noise = torch.Generator().manual_seed(job.stream), noise_generator(job.stream)
    candidates = task.candidates(job.data)
    rows = len(candidates)
    soft = None if task.soft_targets is None else task.soft_targets(candidates)
    for _ in range(config.settings.local_epochs):
        for batch in batches(windows, config.settings.batch_size, shuffle):
            inputs, targets = batch.items[:, :-1], batch.items[:, 1:]
            times = None if batch.times is None else batch.times[:, :-1]
            bits, negatives = draw_noise(task, inputs.shape, noise), None
            part = Rows(draw_cuts(task, targets, shuffle), batch.users)
            if 0 < config.settings.negatives < rows:
                negatives = torch.randperm(rows, generator=shuffle)[: config.settings.negatives] + 1
            yield Step(inputs, targets, bits, part, negatives, soft and soft.of(targets), times)


def train(task: Task, config: LocalTraining, job: Job) -> tuple[Params, LossSum]:
    """``local_epochs`` passes with a fresh optimiser; returns new parameters, writes no input.

    The reference: other ways to train must end with the same parameters.
    """
    windows = client_windows(task, config, job.data)
    params, losses = clone(job.params), LossSum()
    if not len(windows):
        return params, losses
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
    optimizer, rows = fresh_optimizer(leaves, config.settings), client_rows(task, job.data)
    for step in steps(task, config, job, windows):
        model = task.effective(leaves, rows)
        hidden = task.apply(model, step.inputs, step.bits, step.times, step.rows)
        loss = _loss(hidden, model[ITEMS], step)
        losses = losses.add(float(loss.detach()), float((step.targets > 0).sum()))
        if job.extra_loss is not None:
            loss = loss + job.extra_loss.term(leaves, job.extra_loss.context)
        optimizer.zero_grad()
        loss.backward()
        freeze(leaves, job.frozen)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}, losses


def _loss(hidden: Tensor, table: Tensor, step: Step) -> Tensor:
    if step.negatives is None:
        return next_item_cross_entropy(hidden, table, step.targets, step.soft)
    return sampled_cross_entropy(hidden, table, step.targets, step.negatives)


def draw_noise(task: Task, shape: tuple[int, ...], generator: np.random.Generator) -> Tensor | None:
    """Bits for a batch of ``shape`` (B, L): (B, places + L, noise_width) int16, or None."""
    if not task.noise_width:
        return None
    rows, length = shape
    return draw_bits((rows, task.places + length, task.noise_width), generator)


def draw_cuts(task: Task, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Where each row is cut into old and recent items: (B,), from 0 to one less than its targets.

    Any place alike, so that one model reads memories of any age (PerSRec). 0 where a model makes
    no difference; nothing is drawn then.
    """
    lengths = (targets > 0).sum(1)
    if not task.places:
        return torch.zeros_like(lengths)
    return (torch.rand(len(lengths), generator=generator) * lengths).long()


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def fresh_optimizer(leaves: Params, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser at the step sizes of encoder, item rows and projection, nothing accumulated.

    Adam's steps are normalised coordinate by coordinate, so the step of an item's row depends
    neither on how many items there are nor on the mean over a batch.
    """
    rates = dict.fromkeys((RESIDUAL, FACTORS, BIAS), settings.residual_learning_rate)
    rates |= {ITEMS: settings.item_learning_rate, PROJECTION: settings.projection_learning_rate}
    groups: dict[float, list[Tensor]] = {}
    for name, tensor in leaves.items():
        groups.setdefault(rates.get(name, settings.learning_rate), []).append(tensor)
    return OPTIMIZERS[settings.optimizer](
        [{"params": part, "lr": rate} for rate, part in groups.items()], fused=True
    )


def freeze(leaves: Params, frozen: Masks | None) -> None:
    """No gradient at the coordinates that ``frozen`` marks."""
    for name, mask in (frozen or {}).items():
        gradient = leaves[name].grad
        if gradient is not None:
            gradient.masked_fill_(mask, 0.0)
