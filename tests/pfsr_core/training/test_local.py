from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pfsr_core.assembly.assemble import local_training
from pfsr_core.assembly.task import make_task
from pfsr_core.data.client_dataset import ClientDataset, UserHistory
from pfsr_core.evaluation.scoring import make_scorer, with_unseen
from pfsr_core.federated.model import Assembly
from pfsr_core.items.tables import co_occurrence_start, common_item_table, mean_length
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.randomness import noise_generator, stream_seed
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.loop import train
from pfsr_core.training.steps import draw_noise
from pfsr_core.training.task import Task
from pfsr_core.training.windows import batches, prefix_samples, training_windows
from tests.helpers.float64 import double
from tests.helpers.tiny import tiny_world


def client(*histories: list[int], items: int = 30) -> ClientDataset:
    users = tuple(
        UserHistory(str(i), np.array(history, np.int64), 1, 2)
        for i, history in enumerate(histories)
    )
    return ClientDataset("c", users, tuple(map(str, range(1, items + 1))))


def whole_table_reference(
    task: Task, config: LocalTraining, params: Params, data: ClientDataset, touched: Tensor
) -> Params:
    """One epoch with a table (V + 1, D) of all items, of which only the touched ones compete."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    encoder = [leaf for name, leaf in leaves.items() if name != ITEMS]
    adam = torch.optim.Adam(
        [
            {"params": encoder, "lr": config.settings.learning_rate},
            {"params": [leaves[ITEMS]], "lr": config.settings.item_learning_rate},
        ]
    )
    windows = training_windows(data, config.max_length)
    shuffle, noise = torch.Generator().manual_seed(1), noise_generator(1)
    for batch in batches(windows, config.settings.batch_size, shuffle):
        inputs, targets = batch.items[:, :-1], batch.items[:, 1:]
        hidden = task.model.apply(leaves, inputs, draw_noise(task, inputs.shape, noise))
        real = targets > 0
        logits = hidden[real] @ leaves[ITEMS][touched].T
        labels = torch.searchsorted(touched, targets[real])
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        adam.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}


def test_windows_by_hand() -> None:
    windows = training_windows(client([1, 2, 3, 4, 5, 6], [7, 8], [9]), max_length=3)
    assert windows.items.tolist() == [[3, 4, 5, 6], [1, 2, 3, 0], [7, 8, 0, 0]]
    assert windows.users.tolist() == [1, 1, 2]


@given(st.lists(st.integers(0, 25), min_size=1, max_size=5), st.integers(2, 9))
def test_every_item_after_the_first_is_a_target_once(lengths: list[int], max_length: int) -> None:
    histories = [list(range(1, length + 1)) for length in lengths]
    windows = training_windows(client(*histories), max_length).items
    targets = sorted(windows[:, 1:][windows[:, 1:] > 0].tolist())
    assert targets == sorted(item for history in histories for item in history[1:])
    assert windows.shape[1] <= max_length + 1


def test_batches_hold_every_window_once_and_are_cut_to_their_longest() -> None:
    windows = training_windows(client(*([[1, 2]] * 5), [1, 2, 3, 4]), 10)
    found = list(batches(windows, 4, torch.Generator().manual_seed(0)))
    assert sum(len(batch) for batch in found) == 6
    assert sorted(user for batch in found for user in batch.users.tolist()) == [1, 2, 3, 4, 5, 6]
    assert all((batch.items > 0).any(0).all() for batch in found)


def test_streams_are_named() -> None:
    seeds = {stream_seed(0, "client", "a", 1), stream_seed(0, "client", "a", 2), stream_seed(1)}
    assert len(seeds) == 3 and all(0 <= seed < 2**63 for seed in seeds)


def test_training_repeats_bit_for_bit_and_leaves_the_global_generator_alone() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.partition.init_shared(), **task.partition.init_private(data)}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, _ = train(task, local_training(settings), Job(params, data, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    second, _ = train(task, local_training(settings), Job(params, data, 1))
    other, _ = train(task, local_training(settings), Job(params, data, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_frozen_coordinates_do_not_move() -> None:
    settings, federation, _ = tiny_world(train__local_epochs=3)
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.partition.init_shared(), **task.partition.init_private(data)}
    name = "encoder.layers.0.feed_forward.expand.weight"
    frozen = {name: torch.rand(params[name].shape) < 0.5}
    trained, _ = train(task, local_training(settings), Job(params, data, 1, frozen=frozen))
    moved = trained[name] != params[name]
    assert not bool((moved & frozen[name]).any())
    assert bool((moved & ~frozen[name]).any())


@pytest.mark.parametrize("encoder", ["associative-mamba", "sasrec"])
@pytest.mark.parametrize("start", ["common", "co-occurrence"])
def test_own_rows_train_as_they_would_in_a_table_of_the_whole_catalogue(
    encoder: str, start: str
) -> None:
    settings, federation, _ = tiny_world(model__encoder=encoder, model__item_start=start)
    task = make_task(settings, federation.split.item_ids)
    data, config = federation.clients[0], local_training(settings)
    params = double({**task.partition.init_shared(), **task.partition.init_private(data)})
    touched = torch.from_numpy(data.touched)
    table = torch.randn(data.num_items + 1, 8, dtype=torch.float64)  # must not matter
    table[touched] = params[ITEMS][1:]
    reference = whole_table_reference(task, config, {**params, ITEMS: table}, data, touched)
    trained, _ = train(task, config, Job(params, data, 1))
    torch.testing.assert_close(trained[ITEMS][1:], reference[ITEMS][touched], rtol=0, atol=1e-9)
    for name in task.partition.init_shared():
        torch.testing.assert_close(trained[name], reference[name], rtol=0, atol=1e-9)


def test_prefix_samples_are_true_and_distinct() -> None:
    data = client([1, 2, 3, 4], [5, 6])
    prefixes, lengths, targets, _ = prefix_samples(data, 3, 100, torch.Generator().manual_seed(0))
    found = {
        (tuple(prefix[:length].tolist()), int(target))
        for prefix, length, target in zip(prefixes, lengths, targets, strict=True)
    }
    assert found == {((1,), 2), ((1, 2), 3), ((1, 2, 3), 4), ((5,), 6)}
    few = prefix_samples(data, 3, 2, torch.Generator().manual_seed(0))
    assert [len(part) for part in few[:3]] == [2, 2, 2]


def test_a_scorer_ranks_candidates_only_and_answers_an_empty_history() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.partition.init_shared(), **task.partition.init_private(data)}
    score = make_scorer(task, params, data, 10)
    scores = score([data.users[0].train, np.empty(0, np.int64)])
    ranked = scores.isfinite().all(0).nonzero().flatten().tolist()
    assert ranked == data.touched.tolist()


def test_scores_do_not_depend_on_the_other_users_of_a_batch() -> None:
    settings, federation, _ = tiny_world()
    task = make_task(settings, federation.split.item_ids)
    data = federation.clients[0]
    params = {**task.partition.init_shared(), **task.partition.init_private(data)}
    score = make_scorer(task, params, data, 10)
    histories = [user.train for user in data.users]
    together = score(histories)
    for row, history in enumerate(histories):
        torch.testing.assert_close(score([history])[0], together[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", ["common", "secret", "co-occurrence"])
def test_item_starts(start: str) -> None:
    _, federation, assembly = tiny_world(model__item_start=start)
    one, other = (whole_table(assembly, data) for data in federation.clients[:2])
    assert bool((one[0] == 0).all())
    same_rows = [bool(torch.equal(one[i], other[i])) for i in range(1, len(one))]
    if start == "common":
        assert all(same_rows)
    if start == "secret":
        assert not any(same_rows)
    if start == "co-occurrence":
        a, b = (set(data.touched.tolist()) for data in federation.clients[:2])
        untouched = [code for code in range(1, len(one)) if code not in a | b]
        assert untouched and all(same_rows[code - 1] for code in untouched)
        assert not all(same_rows)


def whole_table(assembly: Assembly, data: ClientDataset) -> Tensor:
    """What every item of the catalogue starts with on a client: (V + 1, D)."""
    table = assembly.task.partition.init_private(data)[ITEMS]
    every = torch.arange(data.num_items + 1)
    numbers, table = with_unseen(assembly.task, table, data, every)
    return table[numbers]


def test_the_start_is_that_of_the_whole_catalogue() -> None:
    """The rows are those of co-occurrence over all items, of which only the touched ones count."""
    settings, federation, assembly = tiny_world(model__item_start="co-occurrence")
    table = common_item_table(federation.split.item_ids, 8, 0, settings.model.item_std)
    for data in federation.clients:
        histories = [user.train for user in data.users]
        every = np.arange(len(table))
        whole = co_occurrence_start(table, mean_length(table), every, histories)
        torch.testing.assert_close(whole_table(assembly, data), whole, rtol=0, atol=1e-6)


def test_a_history_may_hold_items_that_the_table_lacks() -> None:
    """Scores are those of a table of the whole catalogue with the start in the missing rows."""
    settings, federation, assembly = tiny_world(model__item_start="co-occurrence")
    data, task = federation.clients[0], assembly.task
    strange = np.setdiff1d(np.arange(1, data.num_items + 1), data.touched)[:3]
    history = np.concatenate([data.users[0].train[-3:], strange])
    params = {**task.partition.init_shared(), **task.partition.init_private(data)}
    scores = make_scorer(task, params, data, settings.model.max_length)([history])[0]
    whole = {**params, ITEMS: whole_table(assembly, data)}
    last = task.model.apply(whole, torch.from_numpy(history)[None], None)[0, -1]
    expected = torch.full_like(scores, -torch.inf)
    expected[data.touched] = whole[ITEMS][data.touched] @ last
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_states_of_other_items_have_another_fingerprint() -> None:
    for items in ("private", "shared"):
        _, federation, assembly = tiny_world(model__items=items)
        found = {assembly.fingerprint_of(data) for data in federation.clients}
        assert (len(found) == 1) == (items == "shared")


def test_a_secret_start_follows_from_the_secret_not_from_the_runs_seed() -> None:
    tables = []
    for seed, secret in ((0, b"one"), (1, b"one"), (0, b"two")):
        _, federation, assembly = tiny_world(model__item_start="secret", run__seed=seed)
        data = replace(federation.clients[0], secret=secret)
        tables.append(whole_table(assembly, data))
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_plain_steps_of_all_clients_are_a_step_on_all_data() -> None:
    """Federated SGD: one step a client, weighted by its targets, is the pooled gradient's step."""
    settings, federation, assembly = tiny_world(
        train__optimizer="sgd",
        train__learning_rate=0.5,
        train__item_learning_rate=0.5,
        train__batch_size=1000,
        model__items="shared",
        model__dropout=0.0,
        model__max_length=50,
    )
    task, start = assembly.task, double(assembly.task.partition.init_shared())
    config = local_training(settings)
    parts = [federation.clients[0], federation.clients[1]]
    pooled = replace(parts[0], users=parts[0].users + parts[1].users)

    def step(data: ClientDataset) -> tuple[Params, float]:
        trained, losses = train(task, config, Job(start, data, stream=1))
        return trained, losses.count

    (one, n), (other, m), (both, _) = step(parts[0]), step(parts[1]), step(pooled)
    for name, expected in both.items():
        mean = (n * one[name] + m * other[name]) / (n + m)
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-9, msg=name)
