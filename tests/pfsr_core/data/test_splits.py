"""The protocol ``strict``: order, ties, what is held out, and the digest."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import leave_one_out
from tests.pfsr_core.data.helpers import log_of

LOG = log_of(
    [
        ("u", "a", 9),
        ("v", "b", 1),
        ("u", "c", 2),
        ("v", "d", 1),
        ("u", "d", 2),
        ("v", "a", 1),
        ("u", "b", 1),
        ("w", "a", 1),
        ("w", "b", 2),
    ]
)


@st.composite
def logs(draw: st.DrawFn) -> Interactions:
    """Logs of up to 40 rows with many ties; user "u" always has three interactions."""
    row = st.tuples(st.sampled_from("uvwxyz"), st.sampled_from("abcdefg"), st.integers(0, 4))
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "c", 1), *draw(st.lists(row, max_size=40))]
    return log_of([(user, item, float(time)) for user, item, time in draw(st.permutations(rows))])


def raw_history(log: Interactions, user: str) -> list[str]:
    """The items of a user by (time, place in the file), the slow and obvious way."""
    code = log.user_ids.index(user)
    rows = [row for row in range(len(log)) if log.users[row] == code]
    rows.sort(key=lambda row: (log.timestamps[row], row))
    return [log.item_ids[log.items[row] - 1] for row in rows]


def test_a_small_split() -> None:
    split = leave_one_out(LOG)
    u, v = split.users
    assert split.item_ids == ("a", "b", "c", "d")
    assert (u.user, u.train.tolist(), u.valid, u.test) == ("u", [2, 3], 4, 1)
    assert (v.user, v.train.tolist(), v.valid, v.test) == ("v", [2], 4, 1)
    assert split.num_skipped == 1
    assert split.protocol == "strict"


def test_the_digest_is_of_the_raw_ids() -> None:
    lines = '["u",["b","c"],"d","a"]\n["v",["b"],"d","a"]\n'
    assert leave_one_out(LOG).digest == hashlib.sha256(lines.encode()).hexdigest()


def test_ties_keep_file_order() -> None:
    rows = [("u", item, 1.0) for item in "dacb"]
    (user,) = leave_one_out(log_of(rows)).users
    assert user.all_items.tolist() == [1, 2, 3, 4]
    swapped = leave_one_out(log_of([*rows[:2], rows[3], rows[2]]))
    assert swapped.digest != leave_one_out(log_of(rows)).digest


def test_the_published_protocol_turns_ties_around() -> None:
    rows = [("u", "a", 1.0), ("u", "b", 2.0), ("u", "c", 2.0), ("u", "d", 2.0), ("u", "e", 0.0)]
    split = leave_one_out(log_of(rows), "paper-pfedrec")
    (user,) = split.users
    assert [split.item_ids[code - 1] for code in user.all_items] == ["e", "a", "d", "c", "b"]
    assert split.protocol == "paper-pfedrec"
    assert split.digest != leave_one_out(log_of(rows)).digest


@given(logs())
def test_the_split_loses_nothing_and_invents_nothing(log: Interactions) -> None:
    split = leave_one_out(log)
    for user in split.users:
        items = [split.item_ids[code - 1] for code in user.all_items]
        assert items == raw_history(log, user.user)
        assert len(user.train) >= 1
    kept = {user.user for user in split.users}
    short = [user for user in log.user_ids if user not in kept]
    assert all(len(raw_history(log, user)) < 3 for user in short)
    assert split.num_skipped == len(short)


@given(logs())
def test_the_digest_ignores_how_users_are_interleaved(log: Interactions) -> None:
    order = np.argsort(log.users, kind="stable")
    grouped = replace(
        log, users=log.users[order], items=log.items[order], timestamps=log.timestamps[order]
    )
    assert leave_one_out(grouped).digest == leave_one_out(log).digest


@given(logs())
def test_the_digest_changes_with_the_content(log: Interactions) -> None:
    renamed = replace(log, item_ids=tuple(f"{item}'" for item in log.item_ids))
    assert leave_one_out(renamed).digest != leave_one_out(log).digest


def test_nobody_is_long_enough() -> None:
    with pytest.raises(DataError, match="no user has 3 interactions"):
        leave_one_out(log_of([("u", "a", 1), ("u", "b", 2)]))


def test_histories_do_not_share_memory_with_the_log() -> None:
    split = leave_one_out(LOG)
    split.users[0].train[:] = 99
    assert LOG.items.max() == 4
