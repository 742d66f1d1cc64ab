"""What an upload says about a history: the attacks find what is there, and chance is chance."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.leakage.attack import found, leak, moves
from pfsr_core.settings.fields import Value
from tests.helpers.tiny import tiny_world

USERS: dict[str, Value] = {"federation__partition": "user", "algorithm__name": "fed-avg"}


def test_area_and_share_on_a_case_by_hand() -> None:
    scores = np.array([4.0, 3.0, 2.0, 1.0], np.float32)
    assert found(scores, np.array([True, True, False, False])) == (1.0, 1.0)
    assert found(scores, np.array([False, False, True, True])) == (0.0, 0.0)
    assert found(scores, np.array([True, False, True, False])) == (0.75, 0.5)


def test_a_table_of_rows_tells_the_history_and_text_alone_tells_less() -> None:
    areas = {}
    for items in ("dual", "semantic"):
        _, federation, assembly = tiny_world(**USERS, model__items=items, model__id_dim=0)
        areas[items] = max(a for a, _ in leak(assembly, federation.clients[:8]).values())
    assert areas["dual"] > 0.9
    assert areas["semantic"] < areas["dual"] - 0.05


@pytest.mark.parametrize("items", ["shared", "dual", "semantic"])
def test_moves_are_of_every_item(items: str) -> None:
    _, federation, assembly = tiny_world(**USERS, model__items=items)
    data = federation.clients[0]
    assert moves(assembly, data).shape == (data.num_items, 8)


def test_a_mean_of_clients_tells_less_of_each() -> None:
    _, federation, assembly = tiny_world(**USERS, model__items="dual")
    alone, among = (
        max(share for _, share in leak(assembly, federation.clients[:8], together).values())
        for together in (1, 8)
    )
    assert among < alone - 0.1


def test_clients_that_fill_no_group_are_left_out() -> None:
    _, federation, assembly = tiny_world(**USERS, model__items="dual")
    whole = leak(assembly, federation.clients[:8], 4)
    assert leak(assembly, federation.clients[:9], 4) == whole
    with pytest.raises(ValueError, match="3 clients make no group of 4"):
        leak(assembly, federation.clients[:3], 4)


def test_moves_taken_apart_undo_the_overlap_of_public_vectors() -> None:
    """With one direction an item, what a projection tells is what a table would."""
    _, federation, assembly = tiny_world(**USERS, model__items="semantic", model__id_dim=200)
    results = leak(assembly, federation.clients[:8])
    area, share = max(pair for name, pair in results.items() if name.endswith("apart"))
    assert area > 0.95 and share > 0.9
