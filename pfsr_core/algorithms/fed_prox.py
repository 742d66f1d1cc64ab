"""FedProx (Li et al., 2020): federated averaging with a pull towards what was received."""

from __future__ import annotations

from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.server_optimizers import ServerStep, average
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task


def fed_prox(
    task: Task,
    training: LocalTraining,
    strength: float,
    *,
    step: ServerStep = average,
    weight_power: float = 1.0,
) -> FederatedAlgorithm:
    """``strength`` is mu: mu / 2 * || theta - theta_g ||^2 over the shared names."""
    return fed_avg(task, training, step=step, proximal_strength=strength, weight_power=weight_power)
