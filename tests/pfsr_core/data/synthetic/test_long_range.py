"""What the latest items say nothing about, and the oldest decide."""

from __future__ import annotations

import numpy as np
import pytest

from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.errors import DataError
from pfsr_core.data.splits import leave_one_out
from pfsr_core.data.synthetic.long_range import (
    ANSWERS,
    ATTRIBUTES,
    SESSION,
    VALUES,
    generate_long,
)

TOLD, ASKED = ATTRIBUTES * VALUES, ATTRIBUTES * VALUES + ATTRIBUTES
END = ASKED + ATTRIBUTES * VALUES * ANSWERS


def raw(users: int = 30, seed: int = 0) -> list[np.ndarray]:
    """Every history in the numbers of ``ItemRoles``: statements, queries, answers, fillers."""
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


def test_the_answers_held_out_are_of_both_attributes_of_their_session() -> None:
    for history in raw():
        asked, first, second = history[-3:].tolist()
        assert TOLD < asked <= ASKED and cell(first)[0] == asked - TOLD - 1
        assert {cell(first)[0], cell(second)[0]} in ({0, 1}, {2, 3})


def test_the_latest_session_says_nothing_of_what_is_asked_in_the_end() -> None:
    for history in raw():
        assert 150 <= len(history) <= 180
        at_last = {cell(item)[0] for item in history[-2:].tolist()}
        late = [item for item in history[-SESSION - 3 : -3].tolist() if item <= END]
        answers = [cell(item)[0] for item in late if item > ASKED]
        asks = [item - TOLD - 1 for item in late if item <= ASKED]
        assert len(asks) >= 3 and len(answers) == 2 * len(asks)
        assert not at_last & {*answers, *asks}


def test_questions_stand_at_every_place_of_a_history() -> None:
    """No place tells a model with learned positions that nothing is asked there."""
    starts = np.stack([history[:147] for history in raw(users=200)])
    asks = (starts > TOLD) & (starts <= ASKED)
    assert asks[:, ATTRIBUTES:144].any(0).all()


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
