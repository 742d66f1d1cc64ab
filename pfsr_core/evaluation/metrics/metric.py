"""What a ranking metric is: a name, a title, and a value of each rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UserRanks = NDArray[np.int64]
UserValues = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A ranking metric of one held-out item per user.

    Attributes:
        name: Its key in files and messages, e.g. "hr@10".
        title: As people read it, e.g. "HR@10".
        values: 1-based ranks (U,) to the value of each user (U,).
        headline: Whether it is also reported client by client: in clients.csv, the final table, the
            report page, and the means over clients. The others are in summary.json and
            metrics.jsonl only.
    """

    name: str
    title: str
    values: Callable[[UserRanks], UserValues]
    headline: bool = False


def check_cutoff(cutoff: int) -> int:
    """``cutoff``, the length of the list that is looked at. Raises ValueError below 1."""
    if cutoff < 1:
        raise ValueError(f"cut-off {cutoff}: a list has at least one item")
    return cutoff
