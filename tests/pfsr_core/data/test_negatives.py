"""Pairs for a pointwise loss: what may be labelled 0 is what the protocol says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.assembly.settings import DECLARATIONS
from pfsr_core.data.negatives import never_negative, training_pairs
from pfsr_core.data.protocols import PROTOCOLS
from tests.pfsr_core.evaluation.helpers import client, random_client


@given(st.integers(0, 50), st.integers(0, 5), st.sampled_from(sorted(PROTOCOLS)))
def test_every_interaction_is_a_one_and_gets_its_zeros(
    seed: int, per_positive: int, protocol: str
) -> None:
    data = replace(random_client(seed, users=3, num_items=20), protocol=protocol)
    items, labels = training_pairs(data, per_positive, np.random.default_rng(seed))
    start = 0
    for user in data.users:
        size = len(user.train)
        stop = start + size * (1 + per_positive)
        assert items[start : start + size].tolist() == user.train.tolist()
        assert labels[start:stop].tolist() == [1.0] * size + [0.0] * (stop - start - size)
        zeros = items[start + size : stop]
        assert not np.isin(zeros, never_negative(data, user)).any()
        assert not np.isin(zeros, [0, *user.train]).any() and (zeros <= 20).all()
        start = stop
    assert start == len(items) == len(labels)


def test_the_published_protocol_spares_held_out_items_and_strict_does_not() -> None:
    data = client([1, 2, 3, 4], num_items=6)
    strict, paper = (replace(data, protocol=name) for name in ("strict", "paper-pfedrec"))
    drawn = [
        set(training_pairs(one, 50, np.random.default_rng(0))[0].tolist())
        for one in (strict, paper)
    ]
    assert drawn == [{1, 2, 3, 4, 5, 6}, {1, 2, 5, 6}]


def test_without_an_item_to_draw_there_are_no_zeros() -> None:
    data = replace(client([1, 2, 3, 4], num_items=4), protocol="paper-pfedrec")
    items, labels = training_pairs(data, 4, np.random.default_rng(0))
    assert items.tolist() == [1, 2] and labels.tolist() == [1.0, 1.0]
    assert training_pairs(client(), 4, np.random.default_rng(0))[0].shape == (0,)


def test_the_settings_know_every_protocol() -> None:
    assert DECLARATIONS["data.protocol"].choices == tuple(PROTOCOLS)


@pytest.mark.parametrize("num_items", [300, 40])
def test_rivals_are_strangers_and_always_the_same(num_items: int) -> None:
    data = random_client(1, users=5, num_items=num_items)
    for user, rivals in zip(data.users, data.rivals, strict=True):
        assert len(set(rivals.tolist())) == min(99, num_items - len(set(user.all_items.tolist())))
        assert not np.isin(rivals, [0, *user.all_items]).any() and rivals.max() <= num_items
        assert np.array_equal(rivals, user.rivals(np.arange(1, num_items + 1)))
    if num_items == 300:
        assert len({tuple(rivals) for rivals in data.rivals}) == 5
