"""Who is a client: a user, a group of users (a shop, a gateway), or a value such as a market.

Every partition puts every user of the split into exactly one client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.client_dataset import ClientDataset, UserHistory
from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import Split


def partition_by_user(split: Split) -> tuple[ClientDataset, ...]:
    """One client per user, named ``user-<raw id>``."""
    return tuple(
        ClientDataset(f"user-{user.user}", (user,), split.item_ids, protocol=split.protocol)
        for user in split.users
    )


def partition_by_group(
    split: Split, clients: int, seed: int, group_sizes: Sequence[int] = ()
) -> tuple[ClientDataset, ...]:
    """Users drawn at random into ``clients`` groups, named ``group-00`` and so on.

    Args:
        split: The histories to group; inside a group the users keep their order.
        clients: Number of groups.
        seed: Seed of the draw.
        group_sizes: Users of each group; without it they differ by one at most.

    Raises:
        DataError: The sizes do not fit the number of groups or of users.
    """
    group_sizes = group_sizes or _equal_sizes(len(split.users), clients)
    _check_sizes(group_sizes, clients, len(split.users))
    order = np.random.default_rng(seed).permutation(len(split.users))
    groups = np.split(order, np.cumsum(group_sizes)[:-1])
    name_digits = max(2, len(str(clients - 1)))
    return tuple(
        ClientDataset(
            f"group-{i:0{name_digits}d}",
            tuple(split.users[position] for position in np.sort(group)),
            split.item_ids,
            protocol=split.protocol,
        )
        for i, group in enumerate(groups)
    )


def partition_by_column(
    split: Split, interactions: Interactions, column: str
) -> tuple[ClientDataset, ...]:
    """One client for each value of ``column``, named ``<column>-<value>``, in sorted order.

    ``interactions`` is the log that was split. Raises DataError when the column is missing or a
    user has two values or an empty one.
    """
    values = _value_of_user(interactions, column)
    groups: dict[str, list[UserHistory]] = defaultdict(list)
    for user in split.users:
        groups[values[user.user]].append(user)
    return tuple(
        ClientDataset(
            f"{column}-{value}", tuple(groups[value]), split.item_ids, protocol=split.protocol
        )
        for value in sorted(groups)
    )


def _equal_sizes(users: int, clients: int) -> Sequence[int]:
    if not 1 <= clients <= users:
        raise DataError(f"{clients} clients for {users} users. Fix: choose 1 to {users} clients.")
    return [len(part) for part in np.array_split(np.arange(users), clients)]


def _check_sizes(sizes: Sequence[int], clients: int, users: int) -> None:
    if len(sizes) != clients:
        raise DataError(f"{len(sizes)} sizes for {clients} clients. Fix: give one size a client.")
    if min(sizes) < 1:
        raise DataError(f"a client of {min(sizes)} users. Fix: give every client at least one.")
    if sum(sizes) != users:
        raise DataError(
            f"the sizes sum to {sum(sizes)}, but the split has {users} users. "
            f"Fix: make them sum to {users}."
        )


def _value_of_user(interactions: Interactions, column: str) -> dict[str, str]:
    cells = interactions.cells(column)
    _, first_rows = np.unique(interactions.users, return_index=True)
    user_values = cells[first_rows]
    _check_values(interactions, column, user_values[interactions.users])
    return dict(zip(interactions.user_ids, user_values.tolist(), strict=True))


def _check_values(interactions: Interactions, column: str, expected: NDArray[np.str_]) -> None:
    cells = interactions.columns[column]
    wrong_rows = np.flatnonzero((cells != expected) | (cells == ""))
    if len(wrong_rows) == 0:
        return
    first_wrong = wrong_rows[0]
    user = interactions.user_ids[interactions.users[first_wrong]]
    found_values = (
        f"{expected[first_wrong]!s} and {cells[first_wrong]!s}"
        if cells[first_wrong]
        else "an empty value"
    )
    raise DataError(
        f"{interactions.source}: user {user!r} has {found_values} in column {column!r}. "
        f"Fix: a user belongs to one client, so give each user one value."
    )
