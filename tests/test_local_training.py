from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.assembly import local_training, make_task
from pfsr_core.data.client_dataset import ClientDataset, UserHistory
from pfsr_core.local_training import (
    batches,
    make_scorer,
    prefix_samples,
    stream_seed,
    train,
    training_windows,
)
from pfsr_core.models.next_item import ITEMS
from tests.tiny import tiny_world


def client(*histories: list[int], items: int = 30) -> ClientDataset:
    users = tuple(
        UserHistory(str(i), np.array(history, np.int64), 1, 2)
        for i, history in enumerate(histories)
    )
    return ClientDataset("c", users, tuple(map(str, range(1, items + 1))))


def test_windows_by_hand() -> None:
    windows = training_windows(client([1, 2, 3, 4, 5, 6], [7, 8], [9]), max_length=3)
    assert windows.tolist() == [[3, 4, 5, 6], [1, 2, 3, 0], [7, 8, 0, 0]]


@given(st.lists(st.integers(0, 25), min_size=1, max_size=5), st.integers(2, 9))
def test_every_item_after_the_first_is_a_target_once(lengths: list[int], max_length: int) -> None:
    histories = [list(range(1, length + 1)) for length in lengths]
    windows = training_windows(client(*histories), max_length)
    targets = sorted(windows[:, 1:][windows[:, 1:] > 0].tolist())
    assert targets == sorted(item for history in histories for item in history[1:])
    assert windows.shape[1] <= max_length + 1


def test_batches_hold_every_window_once_and_are_cut_to_their_longest() -> None:
    windows = training_windows(client(*([[1, 2]] * 5), [1, 2, 3, 4]), 10)
    found = list(batches(windows, 4, torch.Generator().manual_seed(0)))
    assert sum(len(batch) for batch in found) == 6
    assert all((batch > 0).any(0).all() for batch in found)


def test_streams_are_named() -> None:
    seeds = {stream_seed(0, "client", "a", 1), stream_seed(0, "client", "a", 2), stream_seed(1)}
    assert len(seeds) == 3 and all(0 <= seed < 2**63 for seed in seeds)


def test_training_repeats_bit_for_bit_and_leaves_the_global_generator_alone() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.init_shared(), **task.init_private(data)}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, _ = train(task, local_training(settings), params, data, stream=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    second, _ = train(task, local_training(settings), params, data, stream=1)
    other, _ = train(task, local_training(settings), params, data, stream=2)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_frozen_coordinates_do_not_move() -> None:
    settings, federation, _ = tiny_world(train__local_epochs=3)
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.init_shared(), **task.init_private(data)}
    name = "encoder.layers.0.feed_forward.expand.weight"
    frozen = {name: torch.rand(params[name].shape) < 0.5}
    trained, _ = train(task, local_training(settings), params, data, stream=1, frozen=frozen)
    moved = trained[name] != params[name]
    assert not bool((moved & frozen[name]).any())
    assert bool((moved & ~frozen[name]).any())


def test_only_rows_of_touched_items_move() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.init_shared(), **task.init_private(data)}
    trained, _ = train(task, local_training(settings), params, data, stream=1)
    moved = (trained[ITEMS] != params[ITEMS]).any(1).nonzero().flatten()
    assert set(moved.tolist()) <= set(data.touched.tolist())


def test_prefix_samples_are_true_and_distinct() -> None:
    data = client([1, 2, 3, 4], [5, 6])
    prefixes, lengths, targets = prefix_samples(data, 3, 100, torch.Generator().manual_seed(0))
    found = {
        (tuple(prefix[:length].tolist()), int(target))
        for prefix, length, target in zip(prefixes, lengths, targets, strict=True)
    }
    assert found == {((1,), 2), ((1, 2), 3), ((1, 2, 3), 4), ((5,), 6)}
    few = prefix_samples(data, 3, 2, torch.Generator().manual_seed(0))
    assert [len(part) for part in few] == [2, 2, 2]


def test_a_scorer_ranks_candidates_only_and_answers_an_empty_history() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.init_shared(), **task.init_private(data)}
    score = make_scorer(task, params, task.candidates(data), 10)
    scores = score([data.users[0].train, np.empty(0, np.int64)])
    ranked = scores.isfinite().all(0).nonzero().flatten().tolist()
    assert ranked == data.touched.tolist()


def test_scores_do_not_depend_on_the_other_users_of_a_batch() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.init_shared(), **task.init_private(data)}
    score = make_scorer(task, params, task.candidates(data), 10)
    histories = [user.train for user in data.users]
    together = score(histories)
    for row, history in enumerate(histories):
        torch.testing.assert_close(score([history])[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", ["common", "secret", "co-occurrence"])
def test_item_starts(start: str) -> None:
    settings, federation, assembly = tiny_world(model__item_start=start)
    one, other = (assembly.task.init_private(data)[ITEMS] for data in federation.clients[:2])
    assert bool((one[0] == 0).all())
    same_rows = [bool(torch.equal(one[i], other[i])) for i in range(1, len(one))]
    if start == "common":
        assert all(same_rows)
    if start == "secret":
        assert not any(same_rows)
    if start == "co-occurrence":
        a, b = (set(data.touched.tolist()) for data in federation.clients[:2])
        untouched = [code for code in range(1, len(one)) if code not in a | b]
        assert all(torch.allclose(one[code], other[code]) for code in untouched)
        assert not all(same_rows)


def test_a_secret_start_follows_from_the_secret_not_from_the_runs_seed() -> None:
    tables = []
    for seed, secret in ((0, b"one"), (1, b"one"), (0, b"two")):
        _, federation, assembly = tiny_world(model__item_start="secret", run__seed=seed)
        data = replace(federation.clients[0], secret=secret)
        tables.append(assembly.task.init_private(data)[ITEMS])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
