"""What one client's training is told: its hyper-parameters, and where it starts.

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
from pfsr_core.training.fisher import Masks


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains. ``local_epochs`` passes a round over its windows.

    ``optimizer``: "adam", or "sgd" without momentum. Adam's first step is the sign of the gradient
    whatever its size; of a client that takes few steps a round, plain gradients tell the server
    more (federated SGD, McMahan et al. 2017).

    ``item_learning_rate`` is the step of item tables: small data wants it smaller.
    ``residual_learning_rate``, ``projection_learning_rate``: those of private residuals, or an
    adapter's rows, and of the projection of public item vectors.
    ``negatives``: items drawn for each batch to stand for the catalogue in the loss; 0 takes all.
    ``engine``: a node's clients are trained one by one ("loop"), as one program ("batched"), or the
    small ones so ("auto").
    """

    learning_rate: float
    local_epochs: int
    batch_size: int
    max_length: int
    seed: int
    item_learning_rate: float
    residual_learning_rate: float = 0.001
    projection_learning_rate: float = 0.001
    decay: float = 1.0
    negatives: int = 0
    engine: str = "auto"
    optimizer: str = "adam"

    def in_round(self, round_: int) -> LocalTraining:
        """The step sizes of the 1-based ``round_``: times ``decay`` for every round before it."""
        return self.scaled(self.decay ** (round_ - 1))

    def scaled(self, scale: float) -> LocalTraining:
        """All step sizes times ``scale``."""
        return replace(
            self,
            learning_rate=self.learning_rate * scale,
            item_learning_rate=self.item_learning_rate * scale,
            residual_learning_rate=self.residual_learning_rate * scale,
            projection_learning_rate=self.projection_learning_rate * scale,
        )


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

    def add(self, mean: float, count: float) -> LossSum:
        """With a batch of ``count`` targets and their ``mean`` loss."""
        return LossSum(self.total + mean * count, self.count + count)
