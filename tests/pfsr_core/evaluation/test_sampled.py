"""The view "sampled-99": among 99 strangers, the same for all, and never without being named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfsr_core.evaluation.client import SAMPLED, evaluate_client, no_users
from pfsr_core.evaluation.metrics.registry import metric_names
from pfsr_core.evaluation.ranking import means, merge, rank_in_sample
from tests.pfsr_core.evaluation.helpers import by_content, client, constant, random_client


def test_by_hand() -> None:
    items, scores = np.array([2, 3, 5, 6]), np.array([0.4, 0.9, 0.4, 0.1])
    assert rank_in_sample(scores, items, 3, np.array([2, 5, 6])) == 1
    assert rank_in_sample(scores, items, 2, np.array([3, 6])) == 2
    assert rank_in_sample(scores, items, 2, np.array([5, 6])) == 2  # a tie counts against it
    assert rank_in_sample(scores, items, 2, np.array([1, 4])) == 1  # no candidate: behind
    assert rank_in_sample(scores, items, 4, np.array([1, 2])) == 3  # nor is the target
    assert rank_in_sample(scores[:0], items[:0], 4, np.array([1, 2])) == 3


def test_it_is_there_where_it_is_asked_for() -> None:
    data = random_client(3, users=6, num_items=200)
    score = by_content(200)
    plain = evaluate_client(score, data, "test")
    found = evaluate_client(score, replace(data, sampled=True), "test")
    names = {f"{SAMPLED}/{metric}" for metric in metric_names()}
    assert plain.ranks_sampled is None and set(found.sums()) - set(plain.sums()) == names
    assert {k: v for k, v in found.sums().items() if k not in names} == plain.sums()
    assert found.ranks_sampled is not None
    scores = score([user.history("test") for user in data.users])
    for row, user, rank in zip(scores, data.users, found.ranks_sampled, strict=True):
        rivals = user.rivals(np.arange(1, 201))
        ahead = sum(float(row[code]) >= float(row[user.test]) for code in rivals)
        assert rank == 1 + ahead <= 100


def test_a_constant_score_ranks_last_of_a_hundred() -> None:
    data = replace(client([1, 2, 3, 4], num_items=200), sampled=True)
    found = evaluate_client(constant([0.0] * 201), data, "valid")
    assert found.ranks_sampled is not None and found.ranks_sampled.tolist() == [100]


def test_groups_of_users_merge_exactly() -> None:
    data = replace(random_client(5, users=9, num_items=150), sampled=True)
    parts = [replace(data, users=data.users[:4]), replace(data, users=data.users[4:])]
    score = by_content(150)
    whole = evaluate_client(score, data, "test").sums()
    found = merge(*(evaluate_client(score, part, "test").sums() for part in parts))
    ranked = [name for name in whole if name != "covered"]  # that is of the client, not of a user
    assert [found[name] for name in ranked] == pytest.approx([whole[name] for name in ranked])
    assert merge(no_users(sampled=True).sums(), whole) == whole


def test_other_ways_are_sums_of_the_same_users() -> None:
    data = replace(random_client(5, users=9, num_items=150), sampled=True)
    main, other = (evaluate_client(s, data, "test") for s in (by_content(150), constant([0] * 151)))
    both = replace(main, variants={"global": other})
    expected = {f"global/{k}": v for k, v in other.sums().items() if "/" in k}
    assert both.sums() == {**main.sums(), **expected}
    assert set(no_users(sampled=True, variants=["global"]).sums()) == set(both.sums())
    assert means(both.sums())["global/seen-filtered/mrr"] == pytest.approx(
        other.sums()["seen-filtered/mrr"] / 9
    )
    mask = np.arange(9) < 2
    assert (
        both.select(mask).sums()["global/seen-included/mrr"]
        == other.select(mask).sums()["seen-included/mrr"]
    )
