"""Every partition is disjoint and exhaustive, and its client names are stable."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.partition import partition_by_column, partition_by_group, partition_by_user
from pfsr_core.data.splits import Split, leave_one_out
from pfsr_core.data.synthetic.clusters import generate
from tests.pfsr_core.data.helpers import log_of

LOG = generate(users=25, items=40, seed=3, clusters=4, markets=3, mean_length=8)
SPLIT = leave_one_out(LOG)


def names(clients: Sequence[ClientDataset]) -> list[str]:
    return [client.client for client in clients]


def members(clients: Sequence[ClientDataset]) -> list[list[str]]:
    return [[user.user for user in client.users] for client in clients]


def assert_partition(clients: Sequence[ClientDataset], split: Split) -> None:
    everyone = [user for client in members(clients) for user in client]
    assert sorted(everyone) == sorted(user.user for user in split.users)
    assert len(set(names(clients))) == len(clients)
    assert all(client.item_ids == split.item_ids for client in clients)


def market_log(markets: Sequence[str]) -> Interactions:
    rows = [
        ("u", "a", 1),
        ("u", "b", 2),
        ("u", "c", 3),
        ("v", "a", 1),
        ("v", "b", 2),
        ("v", "c", 3),
    ]
    return log_of([(u, i, float(t)) for u, i, t in rows], market=markets)


def test_every_user_a_client() -> None:
    clients = partition_by_user(SPLIT)
    assert_partition(clients, SPLIT)
    assert names(clients) == [f"user-{user.user}" for user in SPLIT.users]


@given(st.integers(1, 25), st.integers(0, 5))
def test_groups_are_a_partition_of_equal_sizes(clients: int, seed: int) -> None:
    groups = partition_by_group(SPLIT, clients, seed)
    assert_partition(groups, SPLIT)
    sizes = [len(group.users) for group in groups]
    assert len(groups) == clients
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(1, 8), min_size=1, max_size=10), st.integers(0, 5))
def test_groups_have_the_sizes_asked_for(sizes: list[int], seed: int) -> None:
    sizes = [*sizes, 100]
    split = leave_one_out(
        log_of([(f"u{n}", item, 0.0) for n in range(sum(sizes)) for item in "abc"])
    )
    groups = partition_by_group(split, len(sizes), seed, sizes)
    assert_partition(groups, split)
    assert [len(group.users) for group in groups] == sizes


def test_groups_follow_the_seed_and_keep_the_order_of_users() -> None:
    first = partition_by_group(SPLIT, 4, seed=0)
    assert members(first) == members(partition_by_group(SPLIT, 4, seed=0))
    assert members(first) != members(partition_by_group(SPLIT, 4, seed=1))
    place = {user.user: position for position, user in enumerate(SPLIT.users)}
    for group in members(first):
        assert group == sorted(group, key=place.__getitem__)


def test_group_names_sort_as_numbers() -> None:
    assert names(partition_by_group(SPLIT, 2, 0)) == ["group-00", "group-01"]
    many = leave_one_out(log_of([(f"u{n}", item, 0.0) for n in range(101) for item in "abc"]))
    groups = names(partition_by_group(many, 101, 0))
    assert (groups[0], groups[-1]) == ("group-000", "group-100")


@pytest.mark.parametrize(
    ("clients", "sizes", "problem"),
    [
        (0, (), "0 clients for 25 users"),
        (26, (), "26 clients for 25 users"),
        (2, (25,), "1 sizes for 2 clients"),
        (2, (10, 10), "sum to 20, but the split has 25 users"),
        (2, (25, 0), "a client of 0 users"),
    ],
)
def test_groups_that_cannot_be(clients: int, sizes: tuple[int, ...], problem: str) -> None:
    with pytest.raises(DataError, match=f"{problem}.*Fix: "):
        partition_by_group(SPLIT, clients, 0, sizes)


def test_every_market_a_client() -> None:
    clients = partition_by_column(SPLIT, LOG, "market")
    assert_partition(clients, SPLIT)
    assert names(clients) == ["market-market-0", "market-market-1", "market-market-2"]
    for client in clients:
        codes = [LOG.user_ids.index(user.user) for user in client.users]
        found = {str(LOG.columns["market"][LOG.users == code][0]) for code in codes}
        assert {f"market-{value}" for value in found} == {client.client}


def test_markets_come_in_sorted_order() -> None:
    log = market_log(["fr"] * 3 + ["de"] * 3)
    clients = partition_by_column(leave_one_out(log), log, "market")
    assert names(clients) == ["market-de", "market-fr"]
    assert members(clients) == [["v"], ["u"]]


@pytest.mark.parametrize(
    ("markets", "problem"),
    [
        (["de", "fr", "de", "de", "de", "de"], "user 'u' has de and fr in column 'market'"),
        (["de", "de", "de", "fr", "fr", ""], "user 'v' has an empty value in column 'market'"),
    ],
)
def test_a_user_belongs_to_one_market(markets: list[str], problem: str) -> None:
    log = market_log(markets)
    with pytest.raises(DataError, match=f"{problem}.*Fix: "):
        partition_by_column(leave_one_out(log), log, "market")


def test_unknown_column() -> None:
    with pytest.raises(DataError, match="no column 'shop' .further columns: market.*Fix: "):
        partition_by_column(SPLIT, LOG, "shop")
