"""Synthetic data: seeded, of the size asked for, and learnable beyond popularity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import Split, leave_one_out
from pfsr_core.data.synthetic.clusters import generate
from pfsr_core.items.text_vectors import TF_IDF, item_vectors
from tests.pfsr_core.data.helpers import rows_of

Scores = Callable[[NDArray[np.int64]], NDArray[np.float64]]


def cluster_name(title: str) -> str:
    return title.partition(",")[0]


def hit_rate(split: Split, score: Scores) -> float:
    """HR@10 over the full catalogue, history excluded."""
    hits = 0
    for user in split.users:
        history = user.history("test")
        scores = score(history)
        scores[history - 1] = -np.inf
        hits += int((scores >= scores[user.test - 1]).sum() <= 10)
    return hits / len(split.users)


def popularity(split: Split) -> NDArray[np.float64]:
    codes = np.concatenate([user.train for user in split.users])
    return np.bincount(codes, minlength=len(split.item_ids) + 1)[1:].astype(np.float64)


def cluster_chain(log: Interactions, split: Split) -> Scores:
    """Popularity inside a cluster times the transition between clusters, read off the titles."""
    names = [cluster_name(log.titles[item]) for item in split.item_ids]
    cluster = np.unique(names, return_inverse=True)[1]
    counts = np.full((cluster.max() + 1,) * 2, 1e-3)
    for user in split.users:
        np.add.at(counts, (cluster[user.train[:-1] - 1], cluster[user.train[1:] - 1]), 1)
    chain = counts / counts.sum(1, keepdims=True)
    popular = popularity(split)
    within = popular / np.bincount(cluster, weights=popular)[cluster]
    return lambda history: chain[cluster[history[-1] - 1]][cluster] * within


@pytest.mark.parametrize("markets", [1, 3])
def test_the_next_item_can_be_learned(markets: int) -> None:
    log = generate(users=400, items=400, seed=1, clusters=16, markets=markets)
    split = leave_one_out(log)
    popular = popularity(split)
    baseline = hit_rate(split, lambda history: popular.copy())
    learned = hit_rate(split, cluster_chain(log, split))
    assert baseline > 0.05
    assert learned > baseline + 0.15


def test_same_seed_same_log() -> None:
    first, again, other = (generate(50, 60, seed, clusters=5) for seed in (4, 4, 5))
    assert rows_of(first) == rows_of(again)
    assert dict(first.titles) == dict(again.titles)
    assert rows_of(first) != rows_of(other)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(20, 80), st.integers(0, 99), st.integers(1, 8))
def test_every_log_is_well_formed(users: int, items: int, seed: int, clusters: int) -> None:
    log = generate(users, items, seed, clusters=clusters, markets=2, mean_length=8)
    rows = rows_of(log)
    assert len(log.user_ids) == users
    assert 1 <= log.items.min() <= log.items.max() == len(log.item_ids) <= items
    assert len({(user, item) for user, item, _ in rows}) == len(rows)
    assert len({(user, time) for user, _, time in rows}) == len(rows)
    assert log.timestamps.tolist() == sorted(log.timestamps)
    assert set(log.titles) == set(log.item_ids)
    assert len({cluster_name(title) for title in log.titles.values()}) <= clusters


def test_lengths_are_about_the_mean_and_long_tailed() -> None:
    log = generate(users=1000, items=1000, seed=0, mean_length=30)
    lengths = np.bincount(log.users)
    assert 27 < lengths.mean() < 33
    assert np.median(lengths) < lengths.mean()
    assert lengths.min() >= 3


def test_popularity_has_a_long_tail() -> None:
    log = generate(users=500, items=400, seed=0)
    counts = np.sort(np.bincount(log.items)[1:])[::-1]
    assert counts[:40].sum() > 2 * counts.sum() / 10


def test_markets_share_dynamics_but_not_tastes() -> None:
    log = generate(users=900, items=200, seed=2, clusters=5, markets=2)
    first, second = (
        np.bincount(log.items[log.columns["market"] == f"market-{m}"], minlength=201)
        for m in range(2)
    )
    between = np.corrcoef(first, second)[0, 1]
    halves = [np.bincount(log.items[log.users % 4 == rest], minlength=201) for rest in (0, 2)]
    assert between < np.corrcoef(*halves)[0, 1] - 0.1
    assert set(log.columns["market"]) == {"market-0", "market-1"}


def test_titles_name_more_clusters_than_there_are_words() -> None:
    log = generate(users=60, items=150, seed=0, clusters=140, mean_length=40)
    assert len({cluster_name(title) for title in log.titles.values()}) > 64


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"users": 0}, "users and items, not 0 and 30"),
        ({"markets": 6}, "1 to 5 markets for 5 users, not 6"),
        ({"clusters": 31}, "1 to 30 clusters for 30 items, not 31"),
        ({"items": 19}, "at least 20 items, not 19"),
        ({"mean_length": 4}, "a mean length of at least 5, not 4"),
        ({"shortest": 4}, "a shortest length of at least 5, not 4"),
        ({"shortest": 18, "items": 60}, "at least 72 items, not 60"),
    ],
)
def test_numbers_that_do_not_fit(numbers: dict[str, int], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        generate(**{"users": 5, "items": 30, "seed": 0, "clusters": 3, **numbers})


def test_lengths_begin_at_the_shortest_and_have_a_long_tail() -> None:
    log = generate(users=500, items=3000, seed=0, mean_length=165, shortest=18)
    lengths = np.bincount(log.users)
    assert lengths.min() >= 18 and 150 < lengths.mean() < 180 and lengths.max() > 500


def test_all_histories_are_alike_where_the_mean_is_the_shortest() -> None:
    assert set(
        np.bincount(generate(users=50, items=200, seed=0, mean_length=20, shortest=20).users)
    ) == {20}


def test_markets_of_different_sizes_sell_different_items() -> None:
    log = load_dataset("synthetic-markets")
    markets = log.columns["market"]
    sizes = {name: len(np.unique(log.users[markets == name])) for name in np.unique(markets)}
    assert list(sizes.values()) == [800, 300, 150, 80, 40]
    sold = {name: set(log.items[markets == name].tolist()) for name in sizes}
    assert all(len(items) <= 24 * np.ceil(0.6 * 1000 / 24) for items in sold.values())
    large, other = sold["market-0"], sold["market-1"]
    assert 0.4 < len(large & other) / len(other) < 0.8
    again = load_dataset("synthetic-markets", "seed=0")
    assert rows_of(again) == rows_of(log)
    small = load_dataset("synthetic-markets", "sizes=30/10,items=200,clusters=5")
    first = np.unique(small.users, return_index=True)[1]
    assert Counter(small.columns["market"][first]) == {"market-0": 30, "market-1": 10}


def test_every_market_sells_a_part_of_every_cluster() -> None:
    log = generate(40, 120, 2, clusters=6, markets=2, mean_length=18, sizes=(30, 10), sold=50)
    for market in ("market-0", "market-1"):
        codes = np.unique(log.items[log.columns["market"] == market])
        names = Counter(cluster_name(log.titles[log.item_ids[code - 1]]) for code in codes)
        assert len(names) == 6 and max(names.values()) <= 10


def test_titles_carry_the_cluster_into_text_vectors() -> None:
    log = load_dataset("synthetic-markets")
    texts = [log.texts[item] for item in log.item_ids]
    rows = item_vectors(TF_IDF, log.item_ids, texts, 64).rows
    cluster = np.unique([cluster_name(text) for text in texts], return_inverse=True)[1]
    near = rows @ rows.T
    np.fill_diagonal(near, -1)
    assert (cluster[near.argmax(1)] == cluster).mean() > 0.95


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sizes": (30, 20)}, "sizes are of 2 and 50. Fix: give sizes alone"),
        ({"sizes": (40,)}, "sizes are of 1 and 40"),
        ({"sizes": (40, 0)}, "no market without users"),
        ({"sold": 10}, "at least 20 items, not 12"),
        ({"sold": 0}, "sells 1 to 100 per cent, not 0"),
        ({"sold": 101}, "sells 1 to 100 per cent, not 101"),
    ],
)
def test_markets_that_do_not_fit(changes: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        generate(
            **{"users": 40, "items": 120, "seed": 0, "markets": 2, "mean_length": 9, **changes}
        )
