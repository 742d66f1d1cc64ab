from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfsr_core.algorithms.server_optimizers import (
    SECOND_MOMENT,
    ServerOptimizerSettings,
    ServerStep,
    average,
    server_optimizer,
)
from pfsr_core.federated.algorithm import ServerState

START = ServerState({"a": torch.tensor([1.0, 1.0])}, signals={"kept": 3.0})
MEAN = {"a": torch.tensor([2.0, 1.0])}


def server_step(optimizer: str, learning_rate: float, momentum: float, **more: float) -> ServerStep:
    return server_optimizer(ServerOptimizerSettings(optimizer, learning_rate, momentum, **more))


def test_average_is_the_mean_and_keeps_the_signals() -> None:
    new = average(START, MEAN)
    assert new.params == MEAN and new.round == 1 and new.signals == {"kept": 3.0}


def test_momentum_one_and_zero_is_averaging() -> None:
    assert server_step("momentum", 1.0, 0.0)(START, MEAN).params["a"].tolist() == [2.0, 1.0]


def test_momentum_by_hand() -> None:
    step = server_step("momentum", 0.5, 0.9)
    once = step(START, MEAN)
    assert once.params["a"].tolist() == [1.5, 1.0]
    twice = step(once, {"a": torch.tensor([2.5, 1.0])})
    assert twice.params["a"][0].item() == pytest.approx(1.5 + 0.5 * (0.9 + 1.0))


def test_adam_by_hand_and_a_still_coordinate_stays() -> None:
    new = server_step("adam", 0.01, 0.9)(START, MEAN)
    root = (1 - SECOND_MOMENT) ** 0.5
    assert new.params["a"][0].item() == pytest.approx(1 + 0.01 * 0.1 / (root + 1e-3))
    assert new.params["a"][1].item() == 1.0
    assert set(new.slots) == {"m/a", "v/a"}


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_the_step_shrinks_by_the_decay_every_round(optimizer: str) -> None:
    later = replace(START, round=3)
    full = server_step(optimizer, 0.08, 0.9)(later, MEAN).params["a"] - START.params["a"]
    step = server_step(optimizer, 0.08, 0.9, decay=0.5)(later, MEAN).params["a"] - START.params["a"]
    torch.testing.assert_close(step, full * 0.5**3)


def test_adam_makes_up_for_the_size_of_changes_above_epsilon() -> None:
    """Changes a thousandth as large, as of plain gradients, move the server as far."""
    small = {"a": START.params["a"] + 1e-3 * (MEAN["a"] - START.params["a"])}
    far, near = (
        server_step("adam", 0.01, 0.9, epsilon=1e-8)(START, mean).params["a"]
        for mean in (MEAN, small)
    )
    torch.testing.assert_close(near, far, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("optimizer", ["average", "momentum", "adam"])
def test_no_step_writes_its_inputs(optimizer: str) -> None:
    step = server_step(optimizer, 0.1, 0.9)
    state = step(START, MEAN)
    before = {name: value.clone() for name, value in {**state.params, **state.slots}.items()}
    step(state, MEAN)
    assert all(torch.equal(before[n], v) for n, v in {**state.params, **state.slots}.items())
