"""Cores: what stays, that codes are numbered anew, and that nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.data.errors import DataError
from pfsr_core.data.filters import k_core, select_rows
from tests.pfsr_core.data.helpers import Row, log_of, rows_of

rows_strategy = st.lists(
    st.tuples(st.sampled_from("uvwx"), st.sampled_from("abcd"), st.just(0.0)), min_size=1
)


def obvious_core(rows: list[Row], user_core: int, item_core: int) -> list[Row]:
    while True:
        users = Counter(row[0] for row in rows)
        items = Counter(row[1] for row in rows)
        kept = [r for r in rows if users[r[0]] >= user_core and items[r[1]] >= item_core]
        if kept == rows:
            return rows
        rows = kept


def test_dropping_goes_on_until_nothing_changes() -> None:
    rows = [
        ("w", "c", 0),
        ("u", "a", 1),
        ("u", "b", 2),
        ("v", "b", 3),
        ("v", "a", 4),
        ("v", "c", 5),
    ]
    core = k_core(log_of(rows, market=list("xdddde")), 2, 2)
    assert rows_of(core) == rows[1:5]
    assert core.user_ids == ("u", "v")
    assert core.item_ids == ("a", "b")
    assert core.items.tolist() == [1, 2, 2, 1]
    assert core.columns["market"].tolist() == list("dddd")


@given(rows_strategy, st.integers(1, 3), st.integers(1, 3))
def test_it_is_the_obvious_core(rows: list[Row], user_core: int, item_core: int) -> None:
    expected = obvious_core(rows, user_core, item_core)
    if not expected:
        with pytest.raises(DataError, match="lower the cores"):
            k_core(log_of(rows), user_core, item_core)
        return
    core = k_core(log_of(rows), user_core, item_core)
    assert rows_of(core) == expected
    assert core.item_ids == tuple(dict.fromkeys(item for _, item, _ in expected))


def test_take_keeps_the_titles_of_what_stays() -> None:
    log = log_of([("u", "a", 0), ("u", "b", 1), ("v", "c", 2)])
    log = type(log)(**{**vars(log), "titles": {"a": "Alien", "b": "Brazil"}})
    taken = select_rows(log, np.array([2, 1]))
    assert rows_of(taken) == [("v", "c", 2.0), ("u", "b", 1.0)]
    assert taken.titles == {"b": "Brazil"}
