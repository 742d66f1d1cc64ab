"""What the latest items say nothing about, and the oldest decide."""

from __future__ import annotations

import numpy as np
import pytest

from pfsr_core.data import load_dataset
from pfsr_core.data.errors import DataError
from pfsr_core.data.splits import leave_one_out
from pfsr_core.data.synthetic_long import ANSWERS, ATTRIBUTES, QUIET, VALUES, generate_long

TOLD, ASKED = ATTRIBUTES * VALUES, ATTRIBUTES * VALUES + ATTRIBUTES
END = ASKED + ATTRIBUTES * VALUES * ANSWERS


def raw(users: int = 30, seed: int = 0) -> list[np.ndarray]:
    """Every history in the numbers of the shelf: tells, asks, answers, fillers."""
    log = generate_long(users, 150, seed)
    numbers = np.array([int(name.removeprefix("item-")) for name in log.item_ids])
    return [numbers[log.items[log.users == user] - 1] for user in range(users)]


def cell(answer: int) -> tuple[int, int]:
    """Attribute and value of an answer."""
    return divmod((answer - ASKED - 1) // ANSWERS, VALUES)


def test_answers_are_those_of_what_was_told() -> None:
    for history in raw():
        told = dict(divmod(item - 1, VALUES) for item in history[:ATTRIBUTES].tolist())
        assert sorted(told) == list(range(ATTRIBUTES))
        answers = [int(item) for item in history if ASKED < item <= END]
        assert len(answers) >= 6 and len(set(answers)) == len(answers)
        assert all(told[attribute] == value for attribute, value in map(cell, answers))


def test_the_last_answer_is_of_the_attribute_that_the_first_names() -> None:
    for history in raw():
        asked, first, second = history[-3:].tolist()
        assert TOLD < asked <= ASKED and cell(first)[0] == asked - TOLD - 1
        assert cell(second)[0] == (first - ASKED - 1) % ANSWERS % ATTRIBUTES


def test_nothing_late_says_what_the_value_is() -> None:
    for history in raw():
        assert (history[-QUIET + 3 : -3] > END).all()
        assert 150 <= len(history) <= 180


def test_the_last_but_one_tells_the_value_to_one_user_in_four() -> None:
    """The first answer names any attribute, its own too: reading it alone solves that part."""
    solved = [
        cell(history[-2]) == cell(history[-1]) for history in map(np.ndarray.tolist, raw(200))
    ]
    assert 0.2 < np.mean(solved) < 0.3


def test_same_seed_same_log_and_others_differ() -> None:
    one, same, other = (generate_long(10, 150, seed) for seed in (1, 1, 2))
    assert (one.items == same.items).all()
    assert len(one) != len(other) or (one.items != other.items).any()


def test_by_name_and_options() -> None:
    split = leave_one_out(load_dataset("synthetic-long", "users=12,length=130,seed=4"))
    assert len(split.users) == 12
    with pytest.raises(DataError, match="at least 120 items"):
        load_dataset("synthetic-long", "length=100")
    with pytest.raises(DataError, match="users, length, seed"):
        load_dataset("synthetic-long", "items=3")
