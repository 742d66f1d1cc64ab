"""Small logs and places that the tests of the data layer share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pfsr_core.data.interactions import Interactions

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"
Row = tuple[str, str, float]


def shared_data(name: str) -> Path:
    """Directory of a real dataset; skips the test where it is not laid out."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"the dataset {name} is not in ../shared/data")
    return path


def log_of(rows: Sequence[Row], **columns: Sequence[str]) -> Interactions:
    """Interactions out of (user, item, timestamp) rows, numbered by first appearance."""
    user_ids = tuple(dict.fromkeys(user for user, _, _ in rows))
    item_ids = tuple(dict.fromkeys(item for _, item, _ in rows))
    return Interactions(
        source="test",
        users=np.array([user_ids.index(user) for user, _, _ in rows], np.int64),
        items=np.array([item_ids.index(item) + 1 for _, item, _ in rows], np.int64),
        timestamps=np.array([time for _, _, time in rows], np.float64),
        user_ids=user_ids,
        item_ids=item_ids,
        columns={name: np.array(cells, np.str_) for name, cells in columns.items()},
    )


def rows_of(log: Interactions) -> list[Row]:
    """The rows of a log with raw ids."""
    return [
        (log.user_ids[user], log.item_ids[item - 1], float(time))
        for user, item, time in zip(log.users, log.items, log.timestamps, strict=True)
    ]


def write(path: Path, text: str) -> Path:
    """Writes ``text`` as UTF-8 without touching the line ends."""
    path.write_bytes(text.encode())
    return path
