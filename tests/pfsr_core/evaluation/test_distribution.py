"""Spread over clients and groups, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pfsr_core.evaluation.client import evaluate_client
from pfsr_core.evaluation.distribution import (
    Distribution,
    by_client_size,
    by_history_length,
    distribution,
)
from pfsr_core.evaluation.ranking import merge
from tests.pfsr_core.evaluation.helpers import by_content, client, random_client


def test_distribution_by_hand() -> None:
    found = distribution(np.array([2.0, 0.0, 3.0, 4.0]), np.array([4.0, 2.0, 3.0, 16.0]))
    # The clients' means are 0.5, 0, 1 and 0.25.
    assert found == Distribution(
        clients=4,
        mean=0.4375,
        std=pytest.approx(np.std([0.5, 0.0, 1.0, 0.25])),
        min=0.0,
        worst_decile=0.0,
        median=0.375,
        max=1.0,
    )


def test_the_worst_decile_is_rounded_up() -> None:
    values = np.arange(25.0)[::-1]
    assert distribution(values, np.ones(25)).worst_decile == 1.0  # mean of 0, 1, 2
    assert distribution(values[:20], np.ones(20)).worst_decile == 5.5  # mean of 5, 6


def test_clients_without_users_are_left_out() -> None:
    found = distribution(np.array([0.0, 1.0]), np.array([0.0, 2.0]))
    assert (found.clients, found.mean, found.min) == (1, 0.5, 0.5)
    nobody = distribution(np.zeros(2), np.zeros(2))
    assert nobody == Distribution(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_mismatched_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        distribution(np.zeros(2), np.zeros(3))


def test_groups_by_history_length() -> None:
    # Histories before the test item: 2, 3 and 5 items; then 4.
    clients = [client([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]), client([6, 5, 4, 3, 1])]
    evaluations = [evaluate_client(by_content(6), data, "test") for data in clients]
    found = by_history_length(evaluations, bounds=(3, 5, 6))
    users = {label: sums["users"] for label, sums in found.items()}
    assert users == {"<3": 1, "3-4": 2, "5": 1, "6+": 0}
    assert set(found["6+"].values()) == {0.0}
    assert found["<3"]["seen-included/mrr"] == 1 / evaluations[0].ranks_included[0]


def test_groups_by_client_size() -> None:
    clients = [random_client(seed, users, 20) for seed, users in enumerate((1, 2, 5, 9))]
    evaluations = [evaluate_client(by_content(20), data, "test") for data in clients]
    found = by_client_size(evaluations, bounds=(2, 6))
    assert {label: sums["users"] for label, sums in found.items()} == {"<2": 1, "2-5": 7, "6+": 9}
    assert found["<2"] == evaluations[0].sums()


@pytest.mark.parametrize("grouping", [by_history_length, by_client_size])
def test_groups_merge_to_the_whole(grouping) -> None:  # type: ignore[no-untyped-def]
    clients = [random_client(seed, 3 * seed, 30, f"c{seed}") for seed in range(5)]
    evaluations = [evaluate_client(by_content(30), data, "valid") for data in clients]
    found = merge(*grouping(evaluations, bounds=(4, 7, 10)).values())
    assert found == pytest.approx(merge(*(e.sums() for e in evaluations)), rel=1e-12)


@pytest.mark.parametrize("bounds", [(), (5, 5), (5, 3)])
def test_bounds_must_increase(bounds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="increasing"):
        by_history_length([], bounds)
