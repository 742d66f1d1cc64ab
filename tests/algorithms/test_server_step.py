from __future__ import annotations

import pytest
import torch

from pfsr_core.algorithms.server_step import SECOND_MOMENT, average, server_step
from pfsr_core.federated import ServerState

START = ServerState({"a": torch.tensor([1.0, 1.0])}, signals={"kept": 3.0})
MEAN = {"a": torch.tensor([2.0, 1.0])}


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


@pytest.mark.parametrize("optimizer", ["average", "momentum", "adam"])
def test_no_step_writes_its_inputs(optimizer: str) -> None:
    step = server_step(optimizer, 0.1, 0.9)
    state = step(START, MEAN)
    before = {name: value.clone() for name, value in {**state.params, **state.slots}.items()}
    step(state, MEAN)
    assert all(torch.equal(before[n], v) for n, v in {**state.params, **state.slots}.items())
