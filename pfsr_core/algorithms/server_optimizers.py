"""What the server makes of the clients' mean: averaging, momentum or Adam on the mean change.

"average": the mean itself (McMahan et al. 2017). "momentum": FedAvgM (Hsu et al. 2019). "adam":
FedAdam (Reddi et al. 2021), whose per-coordinate scale makes up for coordinates, such as rows of a
shared item table, that only few clients move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pfsr_core.federated.algorithm import ServerState
from pfsr_core.params import Params

ServerStep = Callable[[ServerState, Params], ServerState]
"""(server, the clients' mean of the shared names) -> the next server state"""

SECOND_MOMENT, EPSILON = 0.99, 1e-3  # beta2 and tau of FedAdam


def average(server: ServerState, mean: Params) -> ServerState:
    """The mean becomes the shared model."""
    return replace(server, params=mean, round=server.round + 1)


def momentum_step(learning_rate: float, momentum: float, decay: float = 1.0) -> ServerStep:
    """``m <- momentum * m + (mean - theta)``, ``theta <- theta + learning_rate * m``.

    The learning rate is multiplied by ``decay`` after every round.
    """

    def step(server: ServerState, mean: Params) -> ServerState:
        rate = learning_rate * decay**server.round
        slots: Params = {}
        params: Params = {}
        for name, old in server.params.items():
            before = server.slots.get(name, torch.zeros_like(old))
            slots[name] = momentum * before + (mean[name] - old)
            params[name] = old + rate * slots[name]
        return replace(server, params=params, round=server.round + 1, slots=slots)

    return step


def adam_step(
    learning_rate: float, momentum: float, decay: float = 1.0, epsilon: float = EPSILON
) -> ServerStep:
    """``theta <- theta + learning_rate * m / (sqrt(v) + epsilon)``, without bias correction.

    The learning rate is multiplied by ``decay`` after every round.
    """

    def step(server: ServerState, mean: Params) -> ServerState:
        rate = learning_rate * decay**server.round
        slots: Params = {}
        params: Params = {}
        for name, old in server.params.items():
            zero, change = torch.zeros_like(old), mean[name] - old
            m = momentum * server.slots.get(f"m/{name}", zero) + (1 - momentum) * change
            v = server.slots.get(f"v/{name}", zero)
            v = SECOND_MOMENT * v + (1 - SECOND_MOMENT) * change.square()
            slots |= {f"m/{name}": m, f"v/{name}": v}
            params[name] = old + rate * m / (v.sqrt() + epsilon)
        return replace(server, params=params, round=server.round + 1, slots=slots)

    return step


def server_step(
    optimizer: str,
    learning_rate: float,
    momentum: float,
    *,
    decay: float = 1.0,
    epsilon: float = EPSILON,
) -> ServerStep:
    """The step named "average", "momentum" or "adam"."""
    if optimizer == "average":
        return average
    if optimizer == "momentum":
        return momentum_step(learning_rate, momentum, decay)
    return adam_step(learning_rate, momentum, decay, epsilon)
