"""One client: the two views, coverage, batches and mergeable sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.evaluation import client as client_module
from pfsr_core.evaluation.client import ClientEvaluation, client_sums, evaluate_client, user_values
from pfsr_core.evaluation.metrics.registry import metric_names
from pfsr_core.evaluation.ranking import means, merge
from tests.pfsr_core.evaluation.helpers import by_content, client, constant, random_client

FALLING = [0.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]


def test_variants_by_hand() -> None:
    # Scores fall with the code: code c has rank c when nothing is excluded.
    data = client([1, 2, 3, 5], [6, 1, 2, 4])
    found = evaluate_client(constant(FALLING), data, "test")
    assert found.users == ("shop-0", "shop-1")
    assert found.ranks_included.tolist() == [5, 4]
    assert found.ranks_filtered.tolist() == [2, 2]  # 1, 2, 3 leave; 6, 1, 2 leave
    assert found.history_lengths.tolist() == [3, 3]
    assert found.covered.tolist() == [False, False]


def test_validation_excludes_the_training_items_only() -> None:
    data = client([1, 2, 3, 5], [6, 1, 2, 4])
    found = evaluate_client(constant(FALLING), data, "valid")
    assert found.ranks_included.tolist() == [3, 2]
    assert found.ranks_filtered.tolist() == [1, 1]
    assert found.history_lengths.tolist() == [2, 2]
    assert found.covered.tolist() == [False, True]  # 2 is in the other user's training items


def test_the_scorer_sees_what_came_before_the_target() -> None:
    data = client([4, 2, 3, 5])
    seen: list[list[int]] = []

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        seen.extend(history.tolist() for history in histories)
        return torch.zeros(len(histories), 7)

    evaluate_client(score, data, "valid")
    evaluate_client(score, data, "test")
    assert seen == [[4, 2], [4, 2, 3]]


def test_a_target_repeated_from_the_history_still_competes() -> None:
    found = evaluate_client(constant(FALLING), client([1, 2, 3, 2]), "test")
    assert found.ranks_filtered.tolist() == [1]
    assert found.ranks_included.tolist() == [2]


def test_sums_by_hand() -> None:
    sums = evaluate_client(constant(FALLING), client([1, 2, 3, 5], [6, 5, 2, 4]), "test").sums()
    assert sums["users"] == 2
    assert sums["covered"] == 1
    assert sums["seen-filtered/ndcg@10"] == pytest.approx(1 / math.log2(3) + 1 / 2)
    assert sums["seen-included/mrr"] == pytest.approx(1 / 5 + 1 / 4)
    names = {
        f"seen-{seen}/{metric}" for seen in ("filtered", "included") for metric in metric_names()
    }
    assert set(sums) == {"users", "covered", *names}


def test_a_client_without_users_gives_zero_sums() -> None:
    empty = evaluate_client(constant(FALLING), client(), "test")
    full = evaluate_client(constant(FALLING), client([1, 2, 3, 5]), "test")
    assert set(empty.sums().values()) == {0.0}
    assert merge(empty.sums(), full.sums()) == full.sums()
    assert set(means(empty.sums()).values()) == {0.0}


def test_batches_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_client(seed=3, users=23, num_items=30)
    whole = evaluate_client(by_content(30), data, "test")
    monkeypatch.setattr(client_module, "USERS_PER_BATCH", 5)
    sizes: list[int] = []

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        sizes.append(len(histories))
        return by_content(30)(histories)

    batched = evaluate_client(score, data, "test")
    assert sizes == [5, 5, 5, 5, 3]
    assert batched.ranks_filtered.tolist() == whole.ranks_filtered.tolist()
    assert batched.ranks_included.tolist() == whole.ranks_included.tolist()


def test_clients_merge_to_the_centralised_result() -> None:
    parts = [random_client(seed, 4 + seed, 25, name=f"c{seed}") for seed in range(4)]
    whole = client(num_items=25)
    whole = type(whole)("all", tuple(u for part in parts for u in part.users), whole.item_ids)
    score = by_content(25)
    found = merge(*(evaluate_client(score, part, "test").sums() for part in parts))
    expected = evaluate_client(score, whole, "test").sums()
    # Coverage asks each client's own items: it is the one sum that the partition changes.
    del found["covered"], expected["covered"]
    assert found == pytest.approx(expected, rel=1e-12)


def test_excluding_the_history_never_hurts() -> None:
    found = evaluate_client(by_content(40), random_client(1, users=50, num_items=40), "test")
    assert (found.ranks_filtered <= found.ranks_included).all()
    assert (found.ranks_filtered < found.ranks_included).any()


def test_a_wrong_shape_is_refused_with_the_client() -> None:
    with pytest.raises(ValueError, match=r"client 'shop'.*\(1, 3\).*expected \(1, 7\)"):
        evaluate_client(constant([0.0, 1.0, 2.0]), client([1, 2, 3]), "test")


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        evaluate_client(constant([math.nan] * 7), client([1, 2, 3]), "test")


def test_no_graph_is_kept() -> None:
    weights = torch.nn.Parameter(torch.arange(7.0))
    scores: list[Tensor] = []

    def score(histories: Sequence[ItemArray], *_: object) -> Tensor:
        scores.append(weights * torch.ones(len(histories), 1))
        return scores[-1]

    evaluate_client(score, client([1, 2, 3]), "test")
    assert not scores[0].requires_grad


def test_values_and_sums_over_clients() -> None:
    parts = [client([1, 2, 3, 5]), client(), client([6, 1, 2, 4], [6, 5, 4, 1])]
    evaluations = [evaluate_client(constant(FALLING), part, "test") for part in parts]
    assert user_values(evaluations, "mrr", "included").tolist() == [1 / 5, 1 / 4, 1]
    assert user_values(evaluations, "mrr").tolist() == [1 / 2, 1 / 2, 1]
    sums, counts = client_sums(evaluations, "mrr", "included")
    assert sums.tolist() == [1 / 5, 0, 1.25]
    assert counts.tolist() == [1, 0, 2]
    assert user_values([], "mrr").shape == (0,)


def test_select_keeps_the_columns_together() -> None:
    data = client([1, 2, 3, 5], [6, 5, 2, 4], [6, 5, 4, 3, 2, 1])
    whole = evaluate_client(constant(FALLING), data, "test")
    part = whole.select(np.array([False, True, True]))
    assert part.users == ("shop-1", "shop-2")
    assert part.ranks_included.tolist() == whole.ranks_included[1:].tolist()
    assert part.history_lengths.tolist() == [3, 5]
    assert part.sums()["users"] == 2


def test_means_over_clients_let_every_client_with_users_weigh_the_same() -> None:
    def of_client(name: str, ranks: list[int]) -> ClientEvaluation:
        found = np.array(ranks, np.int64)
        users = tuple(f"{name}-{i}" for i in range(len(ranks)))
        return ClientEvaluation(name, users, found, found, found > 0, found)

    parts = [of_client("large", [1, 1, 50, 50]), of_client("small", [50]), of_client("none", [])]
    total = means(merge(*(one.client_sums() for one in parts)))
    assert total["seen-filtered/hr@10"] == pytest.approx(2 / 5)
    assert total["clients/hr@10"] == pytest.approx((2 / 4 + 0) / 2)
    assert (total["users"], total["clients"]) == (5, 2)
