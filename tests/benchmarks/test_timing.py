from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from benchmarks.timing import against_limit, compare, compare_memory, median_ms, torch_threads


def busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_a_peer_of_three_times_the_cost() -> None:
    found = compare("scan", "c", partial(busy, 0.004), "slow", partial(busy, 0.012), target=2.0)
    assert found.ratio == pytest.approx(3.0, rel=0.4) and found.holds is True
    assert found.ours_ms == pytest.approx(4.0, rel=0.4)
    assert not compare(
        "scan", "c", partial(busy, 0.004), "fast", partial(busy, 0.002), target=1
    ).holds


def test_without_a_target_nothing_holds_or_misses() -> None:
    line = compare("scan", "c", partial(busy, 0.001), "p", partial(busy, 0.001)).as_json()
    assert line["target"] is None and line["holds"] is None
    assert "ours_mb" not in line and "size" not in line


def test_a_very_slow_pair_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.SECONDS", 0.01)
    calls = []

    def peer() -> None:
        calls.append(1)
        busy(0.02)

    assert compare("scan", "c", partial(busy, 0.001), "p", peer).ratio > 5
    assert len(calls) == 1


def test_limits() -> None:
    assert against_limit("serve", "c", 2.0, 4.0).holds is True
    assert against_limit("serve", "c", 8.0, 4.0).ratio == 0.5
    assert against_limit("serve", "c", 8.0, None).holds is None


def megabytes_of_zeros(shape: tuple[int, ...]):
    return partial(torch.ones, shape[0], 2**18)


def twice_the_zeros(shape: tuple[int, ...]):
    return partial(torch.ones, 2 * shape[0], 2**18)


def test_memory_of_fresh_processes() -> None:
    found = compare_memory("scan", "m", megabytes_of_zeros, "twice", twice_the_zeros, (40,), 1.5)
    assert found.ours_mb == pytest.approx(40, rel=0.2)
    assert found.ratio == pytest.approx(2.0, rel=0.2) and found.holds is True


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert median_ms(partial(busy, 0.002), repeats=3) == pytest.approx(2.0, rel=0.5)
