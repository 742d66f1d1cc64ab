"""Baselines: numbers by hand, a slow reference, and what every one of them promises."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation import baselines
from pfsr_core.evaluation.baselines import BASELINES, item_knn, markov, popularity
from pfsr_core.evaluation.client import evaluate_client
from tests.pfsr_core.evaluation.helpers import client, random_client

HELD_OUT = [6, 6]


def history(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


def slow_knn(
    data: ClientDataset, items: list[int], neighbours: int, window: int, decay: float
) -> np.ndarray:
    owners = {
        item: {row for row, user in enumerate(data.users) if item in user.train}
        for item in range(1, data.num_items + 1)
    }

    def cosine(i: int, j: int) -> float:
        both = len(owners[i] & owners[j])
        return round(both / math.sqrt(len(owners[i]) * len(owners[j])), 10) if both else 0.0

    scores = np.zeros(data.num_items + 1)
    for j in owners:
        others = sorted((cosine(i, j) for i in owners if i != j), reverse=True)
        last = others[: min(neighbours, len(others))][-1]
        for age, i in enumerate(items[::-1][:window]):
            if i != j and cosine(i, j) >= last:
                scores[j] += decay**age * cosine(i, j)
    return scores


def test_popularity_by_hand() -> None:
    data = client([1, 2, 1, *HELD_OUT], [2, 3, 1, *HELD_OUT])
    scores = popularity(data)([history(5), history()])
    assert scores.tolist() == [[0, 3, 2, 1, 0, 0, 0]] * 2


def test_markov_by_hand() -> None:
    # Transitions 1 -> 2 twice, 1 -> 3 once, 2 -> 1 once; counts 1: 3, 2: 2, 3: 1.
    data = client([1, 2, 1, 3, *HELD_OUT], [1, 2, *HELD_OUT])
    scores = markov(data)([history(3, 1)])
    shares = np.array([0, 3, 2, 1, 0, 0, 0]) / 7
    assert scores.numpy() == pytest.approx(((np.array([0, 0, 2, 1, 0, 0, 0]) + shares) / 3)[None])


@pytest.mark.parametrize("unhelpful", [history(), history(3), history(1, 5)])
def test_markov_falls_back_on_popularity(unhelpful: np.ndarray) -> None:
    data = client([1, 2, 1, 3, *HELD_OUT], [1, 2, *HELD_OUT])
    scores = markov(data)([unhelpful])[0]
    assert scores.numpy() == pytest.approx(np.array([0, 3, 2, 1, 0, 0, 0]) / 7)


def test_popularity_never_reorders_transition_counts() -> None:
    data = random_client(seed=0, users=60, num_items=20)
    transitions = Counter(
        pair for user in data.users for pair in zip(user.train[:-1], user.train[1:], strict=True)
    )
    for last in range(1, 21):
        scores = markov(data)([history(last)])[0].tolist()
        for i in range(1, 21):
            for j in range(1, 21):
                if transitions[last, i] > transitions[last, j]:
                    assert scores[i] > scores[j]


def test_knn_by_hand() -> None:
    # Users with 1: three, with 2: two, with 3: one; 1 and 2 share two users, 1 and 3 one.
    data = client([1, 2, *HELD_OUT], [2, 1, *HELD_OUT], [1, 3, *HELD_OUT])
    both, three = 2 / math.sqrt(6), 1 / math.sqrt(3)
    scores = item_knn(data)([history(1), history(2, 3), history(5)])
    expected = [[0, 0, both, three, 0, 0, 0], [0, both + three, 0, 0, 0, 0, 0], [0] * 7]
    assert scores.numpy() == pytest.approx(np.array(expected))


def test_knn_window_and_decay_by_hand() -> None:
    data = client([1, 2, *HELD_OUT], [2, 1, *HELD_OUT], [1, 3, *HELD_OUT])
    both, three = 2 / math.sqrt(6), 1 / math.sqrt(3)
    recent = item_knn(data, window=2, decay=0.5)([history(1, 2, 3)])
    assert recent.numpy() == pytest.approx(np.array([[0, three + both / 2, 0, 0, 0, 0, 0]]))


def test_knn_counts_a_user_once_and_a_history_item_each_time() -> None:
    data = client([1, 2, 1, 1, *HELD_OUT], [1, 3, *HELD_OUT])
    once = item_knn(data)([history(1)])
    assert once[0, 2].item() == pytest.approx(1 / math.sqrt(2))
    assert torch.allclose(item_knn(data)([history(1, 1)]), 2 * once)


@pytest.mark.parametrize("block", [4, 256])
@pytest.mark.parametrize(
    ("neighbours", "window", "decay"), [(100, 99, 1.0), (3, 99, 1.0), (2, 4, 0.8)]
)
def test_knn_equals_a_loop(
    monkeypatch: pytest.MonkeyPatch, block: int, neighbours: int, window: int, decay: float
) -> None:
    monkeypatch.setattr(baselines, "ITEMS_PER_BLOCK", block)
    data = random_client(seed=2, users=15, num_items=22)
    histories = [user.history("test") for user in data.users]
    scores = item_knn(data, neighbours, window, decay)(histories)
    for row, items in enumerate(histories):
        expected = slow_knn(data, items.tolist(), neighbours, window, decay)
        assert scores[row].numpy() == pytest.approx(expected, abs=1e-9)


def test_recent_knn_is_the_named_setting() -> None:
    data = random_client(seed=4, users=20, num_items=30)
    histories = [np.arange(1, 15), np.arange(20, 30)]
    recent = BASELINES["item-knn-recent"](data)(histories)
    assert torch.equal(recent, item_knn(data, window=10, decay=0.8)(histories))
    assert not torch.equal(recent, BASELINES["item-knn"](data)(histories))


def test_shrunk_knn_by_hand() -> None:
    data = client([1, 2, *HELD_OUT], [2, 1, *HELD_OUT], [1, 3, *HELD_OUT])
    both, one = 2 / (math.sqrt(6) + 10), 1 / (math.sqrt(3) + 10)
    scores = BASELINES["item-knn-shrunk"](data)([history(1), history(2, 3)])
    expected = [[0, 0, both, one, 0, 0, 0], [0, one + 0.8 * both, 0, 0, 0, 0, 0]]
    assert scores.numpy() == pytest.approx(np.array(expected))


@pytest.mark.parametrize(
    "bad",
    [{"neighbours": 0}, {"window": 0}, {"decay": 0.0}, {"decay": 1.5}, {"shrink": -1.0}],
)
def test_knn_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="item-kNN needs"):
        item_knn(client([1, 2, 3]), **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", BASELINES)
class TestEveryBaseline:
    def test_shape_and_padding(self, name: str) -> None:
        data = random_client(seed=1, users=8, num_items=17)
        scores = BASELINES[name](data)([user.train for user in data.users])
        assert scores.shape == (8, 18)
        assert (scores[:, 0] == 0).all()
        assert torch.isfinite(scores).all()
        assert scores.max() > 0

    def test_unseen_items_score_zero(self, name: str) -> None:
        data = random_client(seed=1, users=3, num_items=60)
        unseen = np.setdiff1d(np.arange(1, 61), data.touched)
        scores = BASELINES[name](data)([user.history("test") for user in data.users])
        assert len(unseen) > 0
        assert (scores[:, unseen] == 0).all()

    def test_held_out_items_are_not_fitted(self, name: str) -> None:
        data = random_client(seed=1, users=8, num_items=17)
        other = ClientDataset(
            data.client,
            tuple(type(user)(user.user, user.train, 1, 2) for user in data.users),
            data.item_ids,
        )
        histories = [user.train for user in data.users]
        assert torch.equal(BASELINES[name](data)(histories), BASELINES[name](other)(histories))

    def test_a_client_without_training_items(self, name: str) -> None:
        for data in (client(), client([1, 2])):
            scores = BASELINES[name](data)([history(), history(3)])
            assert scores.tolist() == [[0.0] * 7] * 2

    def test_no_histories(self, name: str) -> None:
        assert BASELINES[name](client([1, 2, 3, 4]))([]).shape == (0, 7)

    def test_one_user_at_a_time_scores_the_same(self, name: str) -> None:
        data = random_client(seed=6, users=9, num_items=25)
        score = BASELINES[name](data)
        histories = [user.history("test") for user in data.users]
        alone = torch.cat([score([items]) for items in histories])
        assert torch.equal(score(histories), alone)

    def test_it_can_be_evaluated(self, name: str) -> None:
        data = random_client(seed=6, users=9, num_items=25)
        found = evaluate_client(BASELINES[name](data), data, "test")
        assert found.ranks_filtered.min() >= 1
        assert found.ranks_included.max() <= 25
