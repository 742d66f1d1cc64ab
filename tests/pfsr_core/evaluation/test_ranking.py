"""Ranks against a loop, metrics against numbers by hand and against torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalNormalizedDCG

from pfsr_core.evaluation.metrics.registry import metric_names
from pfsr_core.evaluation.ranking import means, merge, per_user, ranking_sums, ranks

INF = math.inf


def nothing(scores: Tensor) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.bool)


def slow_rank(scores: list[float], target: int, excluded: list[bool]) -> int:
    rank = 1
    for item in range(1, len(scores)):
        if item == target or excluded[item]:
            continue
        if scores[item] >= scores[target]:
            rank += 1
    return rank


def test_rank_by_hand() -> None:
    scores = torch.tensor([[9.0, 0.1, 0.4, 0.3, 0.2]] * 4)
    targets = torch.tensor([2, 3, 4, 1])
    assert ranks(scores, targets, nothing(scores)).tolist() == [1, 2, 3, 4]


def test_an_excluded_item_does_not_compete() -> None:
    scores = torch.tensor([[0.0, 0.1, 0.4, 0.3]])
    excluded = torch.tensor([[False, False, True, False]])
    assert ranks(scores, torch.tensor([3]), excluded).tolist() == [1]


def test_an_excluded_target_still_competes() -> None:
    scores = torch.tensor([[0.0, 0.1, 0.4, 0.3]])
    excluded = torch.tensor([[True, False, False, True]])
    assert ranks(scores, torch.tensor([3]), excluded).tolist() == [2]


def test_ties_count_against_the_target() -> None:
    scores = torch.tensor([[0.0, 0.5, 0.5, 0.5, 0.1]])
    for target in (1, 2, 3):
        assert ranks(scores, torch.tensor([target]), nothing(scores)).tolist() == [3]


@pytest.mark.parametrize("value", [0.0, 1.0, -INF, INF])
def test_constant_scores_rank_last(value: float) -> None:
    scores = torch.full((3, 8), value)
    assert ranks(scores, torch.tensor([1, 4, 7]), nothing(scores)).tolist() == [7, 7, 7]


def test_minus_infinity_ranks_behind_everything() -> None:
    scores = torch.tensor([[-INF, 1.0, -INF, -INF, 0.0]])
    assert ranks(scores, torch.tensor([2]), nothing(scores)).tolist() == [4]


def test_inputs_are_not_written() -> None:
    scores, excluded = torch.rand(2, 5), torch.tensor([[True, False, True, False, True]] * 2)
    before = scores.clone(), excluded.clone()
    ranks(scores, torch.tensor([2, 4]), excluded)
    assert torch.equal(scores, before[0])
    assert torch.equal(excluded, before[1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 12))
def test_ranks_equal_a_loop(seed: int, users: int, items: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values, so that ties and infinities are common.
    scores = rng.choice([-INF, 0.0, 0.25, 0.5, INF], (users, items + 1))
    excluded = rng.random((users, items + 1)) < 0.3
    targets = rng.integers(1, items + 1, users)
    found = ranks(torch.from_numpy(scores), torch.from_numpy(targets), torch.from_numpy(excluded))
    expected = [
        slow_rank(row.tolist(), int(target), mask.tolist())
        for row, target, mask in zip(scores, targets, excluded, strict=True)
    ]
    assert found.dtype == torch.int64
    assert found.tolist() == expected


def test_nan_is_refused_with_its_row() -> None:
    scores = torch.rand(3, 4)
    scores[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"1 of 3 users contain NaN \(first: row 1\)"):
        ranks(scores, torch.tensor([1, 2, 3]), nothing(scores))


@pytest.mark.parametrize("target", [0, 4, -1])
def test_a_target_outside_the_catalogue_is_refused(target: int) -> None:
    scores = torch.rand(2, 4)
    with pytest.raises(ValueError, match=f"target {target} in row 1 .* 1..3"):
        ranks(scores, torch.tensor([1, target]), nothing(scores))


def test_shapes_and_mask_type_are_checked() -> None:
    scores, targets = torch.rand(2, 4), torch.tensor([1, 2])
    with pytest.raises(ValueError, match="expected scores"):
        ranks(scores, torch.tensor([1]), nothing(scores))
    with pytest.raises(ValueError, match="expected scores"):
        ranks(scores, targets, nothing(scores)[:, 1:])
    with pytest.raises(ValueError, match="boolean mask"):
        ranks(scores, targets, torch.zeros(2, 4))


def test_sums_by_hand() -> None:
    sums = ranking_sums(torch.tensor([1, 3, 10, 11, 20, 21]))
    dcg = {rank: 1 / math.log2(rank + 1) for rank in (1, 3, 10, 11, 20)}
    expected = {
        "hr@5": 2,
        "hr@10": 3,
        "hr@20": 5,
        "ndcg@5": dcg[1] + dcg[3],
        "ndcg@10": dcg[1] + dcg[3] + dcg[10],
        "ndcg@20": sum(dcg.values()),
        "mrr": 1 + 1 / 3 + 1 / 10 + 1 / 11 + 1 / 20 + 1 / 21,
        "users": 6,
    }
    assert {name: sums[name] for name in expected} == pytest.approx(expected)
    assert dcg[3] == 0.5


def test_per_user_takes_any_cutoff() -> None:
    assert per_user(torch.tensor([1, 2, 3]), "hr@2").tolist() == [1, 1, 0]
    assert per_user(np.array([1, 3, 4]), "ndcg@3").tolist() == [1, 0.5, 0]
    assert per_user(torch.tensor([1, 4]), "mrr").tolist() == [1, 0.25]


@pytest.mark.parametrize("metric", ["auc", "hr", "hr@", "hr@0", "ndcg@ten", "HR@10", "mrr@5"])
def test_an_unknown_metric_is_named(metric: str) -> None:
    with pytest.raises(ValueError, match=f"unknown metric '{metric}'"):
        per_user(torch.tensor([1]), metric)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.lists(st.integers(0, 5), min_size=40, max_size=40),
)
def test_any_partition_of_the_users_merges_to_the_whole(
    all_ranks: list[int], group_of_user: list[int]
) -> None:
    whole = np.array(all_ranks)
    groups = np.array(group_of_user[: len(whole)])
    # Some of the six groups are empty: clients without users.
    parts = [ranking_sums(whole[groups == group]) for group in range(6)]
    expected = ranking_sums(whole)
    assert merge(*parts) == pytest.approx(expected, rel=1e-12)
    assert means(merge(*parts)) == pytest.approx(means(expected), rel=1e-12)


def test_means_divide_everything_but_users() -> None:
    assert means({"hr@10": 3.0, "covered": 2.0, "users": 4.0}) == {
        "hr@10": 0.75,
        "covered": 0.5,
        "users": 4.0,
    }


def test_no_users_mean_zero() -> None:
    assert means(ranking_sums(torch.empty(0, dtype=torch.int64))) == {
        **dict.fromkeys(metric_names(), 0.0),
        "users": 0.0,
    }


def test_bad_sums_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        merge()
    with pytest.raises(ValueError, match=r"group 1 differs .* \['mrr'\]"):
        merge({"users": 1.0}, {"users": 1.0, "mrr": 0.5})
    with pytest.raises(ValueError, match="users"):
        means({"mrr": 0.5})


def test_metrics_equal_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(5)
    users, items = 64, 45
    scores = torch.rand(users, items + 1, generator=generator)
    targets = torch.randint(1, items + 1, (users,), generator=generator)
    excluded = torch.rand(users, items + 1, generator=generator) < 0.2
    found = means(ranking_sums(ranks(scores, targets, excluded)))

    relevant = torch.zeros(users, items + 1, dtype=torch.bool)
    relevant[torch.arange(users), targets] = True
    competes = ~excluded | relevant
    competes[:, 0] = False
    rows = torch.arange(users).unsqueeze(1).expand(users, items + 1)
    ranking = (scores[competes], relevant[competes], rows[competes])
    for k in (5, 10, 20):
        hit = RetrievalHitRate(top_k=k)(ranking[0], ranking[1], indexes=ranking[2])
        gain = RetrievalNormalizedDCG(top_k=k)(ranking[0], ranking[1], indexes=ranking[2])
        assert found[f"hr@{k}"] == pytest.approx(hit.item(), abs=1e-6)
        assert found[f"ndcg@{k}"] == pytest.approx(gain.item(), abs=1e-6)
    reciprocal = RetrievalMRR()(ranking[0], ranking[1], indexes=ranking[2])
    assert found["mrr"] == pytest.approx(reciprocal.item(), abs=1e-6)
