"""Optimisers of a client's parameters: a step size for each kind of tensor, and frozen ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pfsr_core.models.parameter_names import BIAS, FACTORS, ITEMS, PROJECTION, RESIDUAL
from pfsr_core.params import Params
from pfsr_core.settings.sections import TrainSettings
from pfsr_core.training.fisher import Masks

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
