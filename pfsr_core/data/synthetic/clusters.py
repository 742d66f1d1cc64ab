"""A seeded world in which the next item can be learned: for tests, CI and measurements of scale.

Items belong to semantic clusters, and their titles name the cluster. All users walk over the
clusters by one Markov chain; inside a cluster popularity has a long tail. Each market bends the
popularity of clusters and of items to its own taste, so markets agree on dynamics, not on items;
it may also sell a part of the items only, another one than the next market.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pfsr_core.data.errors import DataError
from pfsr_core.data.interactions import Interactions

Array = NDArray[np.float64]
Codes = NDArray[np.int64]
Walks = NDArray[np.int32]

BLOCK = 1024  # users whose walks are thinned out at once
SHORTEST = 5
FOLLOWED = 0.9  # probability of one of the usual successors of a cluster
SUCCESSORS = (0.7, 0.3)  # how the usual successors share it
ZIPF = 0.6
TASTE = 0.7  # standard deviation of a market's log taste
START = 1_600_000_000
DAY = 86_400
ADJECTIVES = ("Amber", "Blue", "Copper", "Dusty", "Early", "Frozen", "Golden", "Hidden")
NOUNS = ("Harbour", "Meadow", "Lantern", "River", "Engine", "Garden", "Mirror", "Summit")


@dataclass(frozen=True)
class World:
    """``cluster_of``: (I,) cluster of each item. ``chain``: (M, C, C) next-cluster probabilities.

    ``taste``: (M, I) weight of an item inside its cluster, for each market; 0 if it is not sold.
    """

    cluster_of: Codes
    chain: Array
    taste: Array


def generate(  # noqa: PLR0913 - the options of the data source
    users: int,
    items: int,
    seed: int,
    *,
    clusters: int = 10,
    markets: int = 1,
    mean_length: int = 30,
    shortest: int = SHORTEST,
    sizes: Sequence[int] = (),
    sold: int = 100,
) -> Interactions:
    """A log of ``users`` histories over at most ``items`` items, ordered by time.

    ``mean_length=165, shortest=18`` gives lengths like those of ML-1M.

    Args:
        users: Number of users.
        items: Number of items; a user has each at most once.
        seed: Seed of all draws.
        clusters: Number of semantic clusters.
        markets: Number of markets; ``columns["market"]`` is the market of the user.
        mean_length: Mean length of a history.
        shortest: Shortest length; what a history has beyond it is exponentially distributed.
        sizes: Number of users of each market; equal numbers if empty.
        sold: Per cent of each cluster's items that a market sells, drawn for it alone.

    Raises:
        DataError: The numbers do not fit each other.
    """
    if not 1 <= sold <= 100:
        raise DataError(f"a market sells 1 to 100 per cent, not {sold}. Fix: change sold.")
    sold_items = items * sold // 100
    _check_numbers(users, sold_items, clusters, markets, mean_length=mean_length, shortest=shortest)
    _check_sizes(users, markets, sizes)
    world_rng, walk_rng, catalogue_rng = (
        np.random.default_rng((seed, stream)) for stream in range(3)
    )
    world = make_world(world_rng, items, clusters, markets)
    world = replace(world, taste=world.taste * _items_sold(catalogue_rng, world, sold / 100))
    market_of = np.repeat(np.arange(markets), sizes) if sizes else np.arange(users) % markets
    lengths = shortest + walk_rng.poisson(walk_rng.exponential(mean_length - shortest, users))
    lengths = np.minimum(lengths, max(shortest, sold_items // 2))
    walks = _random_walks(walk_rng, world, market_of, 2 * int(lengths.max()))
    rows_user, rows_item = _without_repeats(walks, lengths, items)
    row_times = _visit_times(walk_rng, rows_user)
    time_order = np.argsort(row_times, kind="stable")
    return _to_interactions(
        rows_user[time_order], rows_item[time_order], row_times[time_order], market_of, world
    )


def make_world(rng: np.random.Generator, items: int, clusters: int, markets: int) -> World:
    """Clusters, chain and tastes; every cluster has an item."""
    cluster_of = rng.permutation(np.arange(items) % clusters)
    popularity = np.power(1.0 + rng.permutation(items), -ZIPF, dtype=np.float64)
    taste = popularity * np.exp(rng.normal(0, TASTE, (markets, items)))
    shared_chain = _transition_matrix(rng, clusters)
    cluster_taste = np.exp(rng.normal(0, TASTE, (markets, 1, clusters)))
    chain = shared_chain * cluster_taste
    chain /= chain.sum(-1, keepdims=True)
    return World(cluster_of, chain, taste)


def _items_sold(rng: np.random.Generator, world: World, share: float) -> NDArray[np.bool_]:
    """Which items each market sells: (M, I), ``share`` of every cluster and at least one."""
    item_clusters = world.cluster_of
    cluster_sizes = np.bincount(item_clusters)
    quota = np.ceil(share * cluster_sizes)
    is_sold = np.empty(world.taste.shape, np.bool_)
    for sold_row in is_sold:
        order = np.lexsort((rng.random(len(item_clusters)), item_clusters))
        cluster_rank = np.arange(len(item_clusters)) - np.repeat(
            np.cumsum(cluster_sizes) - cluster_sizes, cluster_sizes
        )
        sold_row[order] = cluster_rank < quota[item_clusters[order]]
    return is_sold


def _transition_matrix(rng: np.random.Generator, clusters: int) -> Array:
    """(C, C) probabilities: two usual successors on a random ring, and a little of everything."""
    ring = rng.permutation(clusters)
    chain = np.full((clusters, clusters), (1 - FOLLOWED) / clusters)
    for step, share in enumerate(SUCCESSORS, start=1):
        chain[ring, np.roll(ring, -step)] += FOLLOWED * share
    return chain


def _random_walks(rng: np.random.Generator, world: World, market_of: Codes, steps: int) -> Walks:
    """(U, steps) items, 0-based, repeats included."""
    users, clusters = len(market_of), world.chain.shape[-1]
    cluster = rng.integers(clusters, size=users)
    walks = np.empty((users, steps), np.int32)
    pickers = [_pickers(world, market) for market in range(len(world.taste))]
    groups = [np.flatnonzero(market_of == market) for market in range(len(world.taste))]
    for step in range(steps):
        coins = rng.random((2, users))
        for market, group in enumerate(groups):
            bounds = np.cumsum(world.chain[market], axis=-1)[cluster[group]]
            drawn = (coins[0, group, None] > bounds).sum(-1)
            cluster[group] = np.minimum(drawn, clusters - 1)
            walks[group, step] = _pick_items(pickers[market], cluster[group], coins[1, group])
    return walks


def _pickers(world: World, market: int) -> tuple[Codes, Array, Codes]:
    """Items on sale by cluster, their cumulative taste plus the cluster number, cluster starts.

    Cluster c covers (c, c + 1], so one sorted array serves the draws of all clusters.
    """
    sold_items = np.argsort(world.cluster_of, kind="stable")
    sold_items = sold_items[world.taste[market, sold_items] > 0]
    cluster, taste = world.cluster_of[sold_items], world.taste[market, sold_items]
    cluster_starts = np.searchsorted(cluster, np.arange(world.chain.shape[-1]))
    cluster_taste = np.add.reduceat(taste, cluster_starts)
    taste_below = np.concatenate([[0.0], np.cumsum(cluster_taste)[:-1]])
    within_cluster = (np.cumsum(taste) - taste_below[cluster]) / cluster_taste[cluster]
    return sold_items, cluster + within_cluster, cluster_starts.astype(np.int64)


def _pick_items(pickers: tuple[Codes, Array, Codes], cluster: Codes, coins: Array) -> Codes:
    order, bounds, starts = pickers
    ends = np.append(starts[1:], len(order))
    # Rounding may put a draw one place beyond its cluster.
    places = np.searchsorted(bounds, cluster + coins)
    return order[np.clip(places, starts[cluster], ends[cluster] - 1)]


def _without_repeats(walks: Walks, lengths: Codes, items: int) -> tuple[Codes, Codes]:
    """(n,) users and items in walking order: first visits only, at most ``lengths`` a user."""
    visit_blocks = [
        _first_visits(walks[start : start + BLOCK], lengths[start : start + BLOCK], items)
        for start in range(0, len(walks), BLOCK)
    ]
    user_blocks = [
        number * BLOCK + user_blocks for number, (user_blocks, _) in enumerate(visit_blocks)
    ]
    return np.concatenate(user_blocks), np.concatenate([visited for _, visited in visit_blocks])


def _first_visits(walks: Walks, lengths: Codes, items: int) -> tuple[Codes, Codes]:
    user_codes = np.repeat(np.arange(len(walks)), walks.shape[1])
    _, first_rows = np.unique(user_codes * items + walks.ravel(), return_index=True)
    first_rows.sort()
    user_codes, visited_items = user_codes[first_rows], walks.ravel()[first_rows].astype(np.int64)
    position = np.arange(len(user_codes)) - np.searchsorted(user_codes, user_codes)
    is_kept = position < lengths[user_codes]
    return user_codes[is_kept], visited_items[is_kept]


def _visit_times(rng: np.random.Generator, users: Codes) -> Array:
    """Seconds that grow along each history: gaps of a day on average, never zero."""
    gaps = 1.0 + np.floor(rng.exponential(DAY, len(users)))
    total = np.cumsum(gaps)
    return np.asarray(START + total - total[np.searchsorted(users, users)])


def _to_interactions(
    users: Codes, items: Codes, times: Array, market_of: Codes, world: World
) -> Interactions:
    user_codes, user_ids = number_ids(users, "user")
    item_codes, item_ids = number_ids(items, "item")
    names = np.array([f"market-{i}" for i in range(len(world.taste))])
    _, first = np.unique(items, return_index=True)
    titles = {item_ids[item_codes[row]]: _title(items[row], world) for row in first}
    return Interactions(
        source="synthetic",
        users=user_codes,
        items=item_codes + 1,
        timestamps=times,
        user_ids=user_ids,
        item_ids=item_ids,
        titles=titles,
        texts=titles,
        columns={"market": names[market_of[users]]},
    )


def number_ids(codes: Codes, kind: str) -> tuple[Codes, tuple[str, ...]]:
    """``codes`` numbered by first appearance, from 0 on, and the raw ids: ``<kind>-<code + 1>``."""
    old_codes, first_rows, inverse = np.unique(codes, return_index=True, return_inverse=True)
    by_appearance = np.argsort(first_rows)
    new_codes = np.argsort(by_appearance)
    return new_codes[inverse], tuple(f"{kind}-{code + 1}" for code in old_codes[by_appearance])


def _title(item: int, world: World) -> str:
    """Words that name the cluster, and the item's own number."""
    number, word = divmod(int(world.cluster_of[item]), len(NOUNS) * len(ADJECTIVES))
    adjective, noun = divmod(word, len(NOUNS))
    cluster = f"{ADJECTIVES[adjective]} {NOUNS[(adjective + noun) % len(NOUNS)]}"
    return f"{cluster}{f' {number + 1}' if number else ''}, part {item + 1}"


def _check_numbers(
    users: int, items: int, clusters: int, markets: int, *, mean_length: int, shortest: int
) -> None:
    demands = (
        (users >= 1 and items >= 1, f"users and items, not {users} and {items}"),
        (1 <= markets <= users, f"1 to {users} markets for {users} users, not {markets}"),
        (1 <= clusters <= items, f"1 to {items} clusters for {items} items, not {clusters}"),
        (shortest >= SHORTEST, f"a shortest length of at least {SHORTEST}, not {shortest}"),
        (items >= 4 * shortest, f"at least {4 * shortest} items, not {items}"),
        (mean_length >= shortest, f"a mean length of at least {shortest}, not {mean_length}"),
    )
    for holds, demand in demands:
        if not holds:
            raise DataError(f"synthetic data need {demand}. Fix: change that number.")


def _check_sizes(users: int, markets: int, sizes: Sequence[int]) -> None:
    if sizes and (len(sizes), sum(sizes)) != (markets, users):
        raise DataError(
            f"synthetic data of {markets} markets and {users} users, but the sizes are of "
            f"{len(sizes)} and {sum(sizes)}. Fix: give sizes alone."
        )
    if sizes and min(sizes) < 1:
        raise DataError("synthetic data have no market without users. Fix: change the sizes.")
