"""Inputs of one client's training: its hyper-parameters, and where it starts.

The steps that follow from it are in :mod:`pfsr_core.training.steps`. They are taken by one client
after the other in :mod:`pfsr_core.training.loop`, or by many clients together in
:mod:`pfsr_core.training.batched`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.params import Params
from pfsr_core.settings.fields import Value
from pfsr_core.settings.sections import TrainSettings
from pfsr_core.training.fisher import Masks


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
        rate_fields = (
            "learning_rate",
            "item_learning_rate",
            "residual_learning_rate",
            "projection_learning_rate",
        )
        return self.with_settings(
            **{rate_field: getattr(self.settings, rate_field) * scale for rate_field in rate_fields}
        )

    def with_settings(self, **changes: Value) -> LocalTraining:
        """With some of its settings changed, by field name."""
        return replace(self, settings=replace(self.settings, **changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ExtraLoss:
    """A loss added to the cross-entropy.

    Attributes:
        term: ``(params, context)`` to a scalar; the same for all clients of a round.
        context: Named groups of tensors, what the term knows of this client alone.
    """

    term: Callable[[Params, Mapping[str, Params]], Tensor]
    context: Mapping[str, Params]


@dataclass(frozen=True)
class Job:
    """One client's training: where it starts, on which data, with which stream of randomness.

    Attributes:
        params: Merged parameters, shared and private; not written to.
        data: The client.
        stream: Seed of its batches and of dropout.
        extra_loss: A term added to the cross-entropy, or None.
        frozen: Marks coordinates that must not move; tensors it does not name are free.
    """

    params: Params
    data: ClientDataset
    stream: int
    extra_loss: ExtraLoss | None = None
    frozen: Masks | None = None


@dataclass(frozen=True)
class LossSum:
    """Sum of batch losses times their targets, and the number of targets."""

    total: float = 0.0
    count: float = 0.0

    def add(self, mean_loss: float, num_targets: float) -> LossSum:
        """With a batch of ``num_targets`` targets and their ``mean_loss`` loss."""
        return LossSum(self.total + mean_loss * num_targets, self.count + num_targets)
