"""What the server makes of the clients' mean: averaging, momentum or Adam on the mean change.

"average": the mean itself (McMahan et al. 2017). "momentum": FedAvgM (Hsu et al. 2019). "adam":
FedAdam (Reddi et al. 2021), whose per-coordinate scale makes up for coordinates, such as rows of a
shared item table, that only few clients move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from pfsr_core.federated.algorithm import ServerState
from pfsr_core.params import Params
from pfsr_core.settings.fields import setting

ServerStep = Callable[[ServerState, Params], ServerState]
"""(server, the clients' mean of the shared names) -> the next server state"""

SECOND_MOMENT = 0.99  # beta2 of FedAdam

UNREAD: dict[str, tuple[str, ...]] = {
    "average": ("decay", "epsilon", "learning-rate", "momentum"),
    "momentum": ("epsilon",),
    "adam": (),
}
"""By optimizer, the other settings that it does not read."""


@dataclass(frozen=True)
class ServerOptimizerSettings:
    """What the server does with the mean of the replies."""

    optimizer: str = setting(
        "average",
        "how the server updates the shared model: average, the mean of the models; "
        "momentum or adam, by a step of that optimizer along the mean change",
        choices=tuple(UNREAD),
    )
    learning_rate: float = setting(
        1.0, "learning rate of the server's optimizer momentum or adam", low=0.0
    )
    momentum: float = setting(
        0.9, "decay rate of the mean in the server's momentum or adam (beta1)", low=0.0, high=0.9999
    )
    decay: float = setting(
        1.0,
        "factor that the server's learning rate is multiplied by after every round",
        low=0.1,
        high=1.0,
    )
    epsilon: float = setting(
        1e-3,
        "term added to the root of the second moment in the server's adam: changes far smaller "
        "than it are not scaled up",
        low=0.0,
    )


def average(server_state: ServerState, mean_params: Params) -> ServerState:
    """The mean becomes the shared model."""
    return replace(server_state, params=mean_params, round=server_state.round + 1)


def momentum_step(learning_rate: float, momentum: float, decay: float = 1.0) -> ServerStep:
    """``m <- momentum * m + (mean - theta)``, ``theta <- theta + learning_rate * m``.

    The learning rate is multiplied by ``decay`` after every round.
    """

    def step(server_state: ServerState, mean_params: Params) -> ServerState:
        round_rate = learning_rate * decay**server_state.round
        new_slots: Params = {}
        new_params: Params = {}
        for tensor_name, old_tensor in server_state.params.items():
            old_momentum = server_state.slots.get(tensor_name, torch.zeros_like(old_tensor))
            new_slots[tensor_name] = momentum * old_momentum + (
                mean_params[tensor_name] - old_tensor
            )
            new_params[tensor_name] = old_tensor + round_rate * new_slots[tensor_name]
        return replace(
            server_state, params=new_params, round=server_state.round + 1, slots=new_slots
        )

    return step


def adam_step(
    learning_rate: float, momentum: float, decay: float = 1.0, epsilon: float = 1e-3
) -> ServerStep:
    """``theta <- theta + learning_rate * m / (sqrt(v) + epsilon)``, without bias correction.

    The learning rate is multiplied by ``decay`` after every round.
    """

    def step(server_state: ServerState, mean_params: Params) -> ServerState:
        round_rate = learning_rate * decay**server_state.round
        new_slots: Params = {}
        new_params: Params = {}
        for tensor_name, old_tensor in server_state.params.items():
            zero, mean_change = torch.zeros_like(old_tensor), mean_params[tensor_name] - old_tensor
            m = (
                momentum * server_state.slots.get(f"m/{tensor_name}", zero)
                + (1 - momentum) * mean_change
            )
            v = server_state.slots.get(f"v/{tensor_name}", zero)
            v = SECOND_MOMENT * v + (1 - SECOND_MOMENT) * mean_change.square()
            new_slots |= {f"m/{tensor_name}": m, f"v/{tensor_name}": v}
            new_params[tensor_name] = old_tensor + round_rate * m / (v.sqrt() + epsilon)
        return replace(
            server_state, params=new_params, round=server_state.round + 1, slots=new_slots
        )

    return step


def server_optimizer(settings: ServerOptimizerSettings) -> ServerStep:
    """The server step that the settings name."""
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.decay
    if settings.optimizer == "average":
        return average
    if settings.optimizer == "momentum":
        return momentum_step(rate, momentum, decay)
    return adam_step(rate, momentum, decay, settings.epsilon)


@dataclass(frozen=True)
class Averaging:
    """How the replies of clients become the next shared model.

    Attributes:
        step: What the server does with their weighted mean.
        weight_power: A client weighs its number of training interactions to this power.
    """

    step: ServerStep = average
    weight_power: float = 1.0


PLAIN_MEAN = Averaging()
"""The mean by interactions is the next shared model."""
