"""A log of interactions in columns, as every reader returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.errors import DataError

LONGEST_KEPT_VALUE = 256


@dataclass(frozen=True)
class Interactions:
    """N interactions in file order.

    ``users``: (N,) codes into ``user_ids`` (0-based). ``items``: (N,) codes, 1-based, 0 is padding:
    ``item_ids[code - 1]`` is the raw id. Codes number the raw ids by first appearance.
    ``timestamps``: (N,) seconds, or the position in the history where the source has no times:
    there ``has_times`` is False.
    ``left_out``: names of further columns that are not kept, for their long values.
    ``titles``: raw item id -> a readable title, where the source has one.
    ``texts``: raw item id -> all words about it, title, genres and the like, for item vectors.
    ``columns``: further columns of the source by name, (N,) strings each, e.g. a market.
    """

    source: str
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    timestamps: NDArray[np.float64]
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    titles: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    has_times: bool = True
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of interactions, N."""
        return len(self.users)

    def cells(self, column: str) -> NDArray[np.str_]:
        """A further column: (N,). Raises DataError when there is none of that name."""
        if column in self.left_out:
            raise DataError(
                f"{self.source}: column {column!r} was left out, because a value of it is longer "
                f"than {LONGEST_KEPT_VALUE} characters. Fix: shorten its values, or name another "
                f"column."
            )
        if column not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise DataError(
                f"{self.source} has no column {column!r} (further columns: {known}). "
                f"Fix: name one of them, or group the users by number."
            )
        return self.columns[column]
