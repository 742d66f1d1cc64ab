"""The bootstrap: exact cases, coverage on simulated data, agreement of interval and p-value."""

from __future__ import annotations

import numpy as np
import pytest

from pfsr_core.evaluation import bootstrap
from pfsr_core.evaluation.bootstrap import Interval, clustered_bootstrap, paired_bootstrap


def test_identical_inputs_give_zero() -> None:
    values = np.random.default_rng(0).random(50)
    assert paired_bootstrap(values, values, samples=500) == Interval(0.0, 0.0, 0.0, 1.0)
    counts = np.arange(1.0, 51.0)
    assert clustered_bootstrap(values, values, counts, samples=500) == Interval(0, 0, 0, 1)


def test_a_constant_difference_has_no_spread() -> None:
    b = np.arange(20.0)
    found = paired_bootstrap(b + 0.5, b, samples=500)
    assert (found.difference, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.p_value == pytest.approx(2 / 501)


def test_a_clear_difference_excludes_zero_and_is_signed() -> None:
    rng = np.random.default_rng(1)
    b = rng.random(400)
    a = b + rng.normal(0.1, 0.2, 400)
    found = paired_bootstrap(a, b, samples=2000)
    assert found.low > 0 and found.p_value < 0.01
    assert found.low < found.difference < found.high
    mirrored = paired_bootstrap(b, a, samples=2000)
    assert mirrored.high < 0
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_no_difference_includes_zero() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 1, 500)
    found = paired_bootstrap(noise - noise.mean() + 0.001, np.zeros(500), samples=2000)
    assert found.low < 0 < found.high
    assert found.p_value > 0.5


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    differences = np.random.default_rng(3).normal(0.3, 1.0, 1000)
    found = paired_bootstrap(differences, np.zeros(1000), samples=4000)
    error = differences.std() / np.sqrt(1000)
    assert found.difference == pytest.approx(differences.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_coverage_on_simulated_users() -> None:
    rng = np.random.default_rng(4)
    runs, covered = 300, 0
    for run in range(runs):
        a, b = rng.random(80) < 0.35, rng.random(80) < 0.25
        found = paired_bootstrap(a.astype(float), b.astype(float), samples=400, seed=run)
        covered += found.low <= 0.10 <= found.high
    assert 0.90 <= covered / runs <= 0.985


def test_coverage_on_simulated_clients_needs_clusters() -> None:
    # Users of one client share its effect: resampling them one by one is far too sure.
    rng = np.random.default_rng(5)
    runs, clients, users = 200, 30, 20
    clustered = naive = 0
    for run in range(runs):
        values = rng.normal(0.5, 1.0, (clients, 1)) + rng.normal(0, 0.5, (clients, users))
        counts = np.full(clients, float(users))
        by_client = clustered_bootstrap(
            values.sum(1), np.zeros(clients), counts, samples=400, seed=run
        )
        by_user = paired_bootstrap(values.ravel(), np.zeros(values.size), samples=400, seed=run)
        clustered += by_client.low <= 0.5 <= by_client.high
        naive += by_user.low <= 0.5 <= by_user.high
    assert 0.88 <= clustered / runs <= 0.99
    assert naive / runs < 0.6


def test_interval_and_p_value_agree() -> None:
    rng = np.random.default_rng(6)
    verdicts = set()
    for run in range(60):
        a = rng.normal(0.25, 1.0, 60)
        found = paired_bootstrap(a, np.zeros(60), samples=999, seed=run)
        outside = found.low > 0 or found.high < 0
        verdicts.add(outside)
        if abs(found.p_value - 0.05) > 0.006:
            assert outside == (found.p_value < 0.05)
    assert verdicts == {True, False}


def test_clusters_weigh_by_their_users() -> None:
    found = clustered_bootstrap(
        np.array([3.0, 1.0]), np.array([1.0, 1.0]), np.array([6.0, 2.0]), samples=2000
    )
    assert found.difference == 2 / 8
    # The three resamples: the first twice, one of each, the second twice.
    assert (found.low, found.high) == (0.0, pytest.approx(1 / 3))


def test_clients_without_users_change_nothing() -> None:
    a, b, counts = np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0]), np.array([6.0, 2.0, 4.0])
    padded = [np.insert(column, 1, 0.0) for column in (a, b, counts)]
    assert clustered_bootstrap(*padded, samples=300) == clustered_bootstrap(
        a, b, counts, samples=300
    )


def test_seeds_are_averaged_per_user_first() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random((3, 40)), rng.random((2, 40))
    assert paired_bootstrap(a, b, samples=300) == paired_bootstrap(
        a.mean(0), b.mean(0), samples=300
    )


def test_same_seed_same_interval_and_another_seed_another() -> None:
    rng = np.random.default_rng(8)
    a, b = rng.random(40), rng.random(40)
    first = paired_bootstrap(a, b, samples=300, seed=1)
    assert first == paired_bootstrap(a, b, samples=300, seed=1)
    assert first != paired_bootstrap(a, b, samples=300, seed=2)


def test_every_sample_is_drawn_when_memory_forces_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(9)
    a, b = rng.random(40), rng.random(40)
    whole = paired_bootstrap(a, b, samples=1001)
    monkeypatch.setattr(bootstrap, "DRAWS_PER_CHUNK", 400)
    chunked = paired_bootstrap(a, b, samples=1001)
    assert chunked.low == pytest.approx(whole.low, abs=0.01)
    assert chunked.p_value == pytest.approx(whole.p_value, abs=0.05)
    assert bootstrap._resampled_means(a - b, np.ones(40), 1001, 0).shape == (1001,)


def test_a_wider_confidence_is_wider() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.random(40), rng.random(40)
    narrow = paired_bootstrap(a, b, samples=1000, confidence=0.8)
    wide = paired_bootstrap(a, b, samples=1000, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bad_input_is_refused() -> None:
    three, four = np.ones(3), np.ones(4)
    with pytest.raises(ValueError, match="a has 3, b has 4"):
        paired_bootstrap(three, four)
    with pytest.raises(ValueError, match="nothing to resample"):
        paired_bootstrap(np.empty(0), np.empty(0))
    with pytest.raises(ValueError, match="nothing to resample"):
        clustered_bootstrap(three, three, np.zeros(3))
    with pytest.raises(ValueError, match="NaN"):
        paired_bootstrap(np.array([1.0, np.nan, 0.0]), three)
    with pytest.raises(ValueError, match="shape"):
        paired_bootstrap(np.ones((2, 2, 3)), three)
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap(three, three, confidence=95.0)
    with pytest.raises(ValueError, match="samples"):
        paired_bootstrap(three, three, samples=0)
