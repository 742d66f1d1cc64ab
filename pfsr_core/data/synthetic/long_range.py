"""Synthetic histories whose held-out items depend on the oldest ones: a long-range benchmark.

Every user has a value for each of four attributes. The first items of a history state them, one
item per attribute. Sessions of SESSION items follow, about the first two attributes and the last
two in turn. Most items of a session are fillers, drawn from one Markov chain for all users. From
time to time there is a query: an item that names an attribute of the session, and two answers,
items of this user's value of that attribute and of the session's other one. No answer occurs twice.
The last query opens a new session: its answers are the held-out items, the validation item first.

So the last item says which attribute is queried, and the latest SESSION items, all about the other
two, do not tell the user's value. The first session has any length, so queries occur at every
position of a window, and the first ones of a session are as far from the statement they refer to as
the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.synthetic.clusters import Codes, number_ids

ATTRIBUTES, VALUES, ANSWERS = 4, 4, 16  # answers: items of each value of each attribute
FILLERS = 60
SESSION = 60
QUERY_GAP = 5  # items from one query to the next, on average
LONGER = 1.2  # the longest history over the shortest
START, STEP = 1_600_000_000, 3_600


@dataclass(frozen=True)
class ItemRoles:
    """Item codes from 1 on, by what an item means in a history."""

    statements: Codes  # (A, V)
    queries: Codes  # (A,)
    answers: Codes  # (A, V, N)
    fillers: Codes  # (F,)


def generate_long(users: int, length: int, seed: int) -> Interactions:
    """A log of ``users`` histories of ``length`` to 1.2 times as many items, ordered by time.

    Raises DataError when a history would be too short for two sessions.
    """
    least = 2 * SESSION
    if length < least or users < 1:
        raise DataError(
            f"synthetic-long data need users and at least {least} items of each, not {users} users "
            f"of {length}. Fix: change that number."
        )
    rng = np.random.default_rng((seed, 0))
    roles, chain = _item_roles(), _filler_successors(rng)
    lengths = rng.integers(length, int(LONGER * length) + 1, users)
    histories = [_history(rng, roles, chain, int(drawn_length)) for drawn_length in lengths]
    return _to_interactions(histories)


def _item_roles() -> ItemRoles:
    sizes = {"statements": (ATTRIBUTES, VALUES), "queries": (ATTRIBUTES,)}
    sizes |= {"answers": (ATTRIBUTES, VALUES, ANSWERS), "fillers": (FILLERS,)}
    ends = np.cumsum([1, *(int(np.prod(size)) for size in sizes.values())])
    ranges = zip(sizes.items(), ends[:-1], ends[1:], strict=True)
    return ItemRoles(**{name: np.arange(a, b).reshape(size) for (name, size), a, b in ranges})


def _filler_successors(rng: np.random.Generator) -> Codes:
    """(F, 4) usual successors of each filler."""
    return rng.integers(FILLERS, size=(FILLERS, 4))


def _history(rng: np.random.Generator, roles: ItemRoles, chain: Codes, length: int) -> Codes:
    user_values = rng.integers(VALUES, size=ATTRIBUTES)
    pairs = rng.permutation(np.arange(ATTRIBUTES).reshape(2, 2))
    answers_left = [list(rng.permutation(ANSWERS)) for _ in range(ATTRIBUTES)]
    item_codes = [int(roles.statements[a, user_values[a]]) for a in rng.permutation(ATTRIBUTES)]
    last_filler, last_place = int(rng.integers(FILLERS)), length - 3
    while len(item_codes) < last_place:
        sessions_left, items_left = divmod(last_place - len(item_codes) - 1, SESSION)
        pair = pairs[(sessions_left + 1) % 2]
        has_query = items_left >= 2 and min(len(answers_left[a]) for a in pair) > 1
        if has_query and rng.random() * QUERY_GAP < 1:
            item_codes += _query(rng, roles, user_values, answers_left, pair)
        else:
            last_filler = int(rng.choice(chain[last_filler]))
            item_codes.append(int(roles.fillers[last_filler]))
    return np.array(item_codes + _query(rng, roles, user_values, answers_left, pairs[0]), np.int64)


def _query(
    rng: np.random.Generator,
    roles: ItemRoles,
    user_values: Codes,
    answers_left: list[list[int]],
    pair: Codes,
) -> list[int]:
    """A query item, and an answer of each of the pair that this user has not given yet."""
    asked_pair = rng.permutation(pair)
    answers = [int(roles.answers[a, user_values[a], answers_left[a].pop()]) for a in asked_pair]
    return [int(roles.queries[asked_pair[0]]), *answers]


def _to_interactions(histories: list[Codes]) -> Interactions:
    users = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    places = np.concatenate([np.arange(len(history)) for history in histories])
    items, item_ids = number_ids(np.concatenate(histories) - 1, "item")
    return Interactions(
        source="synthetic-long",
        users=users,
        items=items + 1,
        timestamps=START + STEP * places.astype(np.float64),
        user_ids=tuple(f"user-{code + 1}" for code in range(len(histories))),
        item_ids=item_ids,
    )
