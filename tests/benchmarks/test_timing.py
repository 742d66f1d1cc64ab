from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.timing import against_limit, compare, compare_memory, median_ms, torch_threads
from tests.helpers.clock import Clock


def test_a_peer_of_three_times_the_cost(clock: Clock) -> None:
    ours, slow, fast = (partial(clock.sleep, seconds) for seconds in (0.004, 0.012, 0.002))
    found = compare("scan", "c", ours, "slow", slow, target=2.0)
    assert found.ratio == pytest.approx(3.0) and found.holds is True
    assert (found.ours_ms, found.peer_ms) == (pytest.approx(4.0), pytest.approx(12.0))
    assert not compare("scan", "c", ours, "fast", fast, target=1).holds


def test_one_pair_on_a_machine_that_stopped_for_a_while_changes_no_figure(clock: Clock) -> None:
    waits = iter([0.004, 0.004, 3.0, *[0.004] * 20])
    found = compare(
        "scan", "c", lambda: clock.sleep(next(waits)), "slow", partial(clock.sleep, 0.012)
    )
    assert (found.ratio, found.ours_ms) == (pytest.approx(3.0), pytest.approx(4.0))


def test_without_a_target_nothing_holds_or_misses(clock: Clock) -> None:
    work = partial(clock.sleep, 0.001)
    line = compare("scan", "c", work, "p", work).as_json()
    assert line["target"] is None and line["holds"] is None
    assert "ours_mb" not in line and "size" not in line


def test_a_very_slow_pair_is_not_repeated(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timing.SECONDS", 0.01)
    calls = []

    def peer() -> None:
        calls.append(1)
        clock.sleep(0.02)

    ours = partial(clock.sleep, 0.001)
    assert compare("scan", "c", ours, "p", peer).ratio == pytest.approx(20.0)
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


def test_threads_are_put_back(clock: Clock) -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert median_ms(partial(clock.sleep, 0.002), repeats=3) == pytest.approx(2.0)
