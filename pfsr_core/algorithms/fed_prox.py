"""FedProx (Li et al., 2020): federated averaging with a pull towards what was received.

L = CE + mu / 2 * || theta - theta_g ||^2        over the shared names
"""

from __future__ import annotations

from dataclasses import dataclass

from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.server_optimizers import PLAIN_MEAN, Averaging
from pfsr_core.algorithms.spec import AlgorithmSpec
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.settings.fields import setting
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task


@dataclass(frozen=True)
class FedProxSettings:
    """The proximal term."""

    strength: float = setting(0.01, "weight mu of the proximal term of FedProx", low=0.0)


def fed_prox(
    task: Task,
    local_training: LocalTraining,
    settings: FedProxSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """Federated averaging with a proximal term over the shared names."""
    return fed_avg(task, local_training, averaging, proximal_strength=settings.strength)


FED_PROX = AlgorithmSpec(fed_prox, FedProxSettings)
