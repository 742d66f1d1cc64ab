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


def fresh_optimizer(leaf_params: Params, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser at the step sizes of encoder, item rows and projection, nothing accumulated.

    Adam's steps are normalised coordinate by coordinate, so the step of an item's row depends
    neither on how many items there are nor on the mean over a batch.
    """
    learning_rates = dict.fromkeys((RESIDUAL, FACTORS, BIAS), settings.residual_learning_rate)
    learning_rates |= {
        ITEMS: settings.item_learning_rate,
        PROJECTION: settings.projection_learning_rate,
    }
    rate_groups: dict[float, list[Tensor]] = {}
    for tensor_name, tensor in leaf_params.items():
        rate_groups.setdefault(learning_rates.get(tensor_name, settings.learning_rate), []).append(
            tensor
        )
    return OPTIMIZERS[settings.optimizer](
        [{"params": group_tensors, "lr": rate} for rate, group_tensors in rate_groups.items()],
        fused=True,
    )


def freeze(leaf_params: Params, frozen_masks: Masks | None) -> None:
    """No gradient at the coordinates that ``frozen_masks`` marks."""
    for tensor_name, mask in (frozen_masks or {}).items():
        gradient = leaf_params[tensor_name].grad
        if gradient is not None:
            gradient.masked_fill_(mask, 0.0)
