"""Every benchmark runs, in small, and measures what it says."""

from __future__ import annotations

import pytest
import torch

from benchmarks import encoder, history, rounds, scale, scan, serve, timing
from benchmarks.peers import Attention, step_by_step
from pfsr_core.models.ops.selective_scan import selective_scan_reference
from pfsr_core.models.parameter_names import ITEMS


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "REPEATS", 1)


def test_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SHAPES", ((2, 5),))
    monkeypatch.setattr(scan, "compare_memory", lambda *_args, **_kw: None)
    lines = [line for line in scan.measure() if line is not None]
    assert any("stand-in" in line.peer or "mamba-ssm" in line.peer for line in lines)
    assert any(line.peer.startswith("mambapy") for line in lines)
    assert lines[-1].peer == "one direction" and lines[-1].ratio is not None


def test_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "TOKENS", 32)
    monkeypatch.setattr(encoder, "LENGTHS", (8, 16))
    monkeypatch.setattr(encoder, "TWO_THREADS", (16,))
    lines = list(encoder.measure())
    assert {line.peer for line in lines} >= {"attention", "GRU", "one thread"}
    assert all(line.target is None for line in lines if line.case.startswith("plain"))


def test_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "HISTORIES", (3,))
    monkeypatch.setattr(serve, "CALLS", 2)
    assert {line.peer for line in serve.measure()} >= {"GRU cell", "forward over all"}


def test_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "HISTORIES", (60, 70))
    monkeypatch.setattr(history, "FLAT", (60, 70))
    monkeypatch.setattr(history, "WINDOWS", (2, 60))
    lines = list(history.measure())
    assert {line.peer for line in lines} >= {"tokens, reading all", "state, reading all"}
    assert [line.peer for line in lines[-2:]] == ["pieces of 50, state detached"] * 2
    assert [line.case for line in lines if line.target is not None] == [
        "tokens, after 70 interactions",
        "state, after 70 interactions",
        "tokens, after 70 interactions against 60",
        "state, after 70 interactions against 60",
    ]


@torch.no_grad()
def test_an_answer_from_a_memory_is_that_without_one() -> None:
    items = torch.randint(1, history.ITEMS + 1, (1, 70))
    server = history.server_of("tokens", items, history.RECENT)
    torch.testing.assert_close(server.serve(), server.anew(items))


@torch.no_grad()
def test_what_is_timed_as_state_is_what_reading_all_gives() -> None:
    items = torch.randint(1, history.ITEMS + 1, (1, 60))
    server = history.server_of("state", items, 1)
    torch.testing.assert_close(server.serve(), server.read(items), rtol=1e-4, atol=1e-4)


def test_the_stand_in_is_the_scan() -> None:
    torch.manual_seed(0)
    x, dt = torch.randn(2, 7, 6).double(), torch.rand(2, 7, 6).double()
    A, B, C = (
        -torch.rand(6, 4).double(),
        torch.randn(2, 7, 4).double(),
        torch.randn(2, 7, 4).double(),
    )
    torch.testing.assert_close(
        step_by_step(x, dt, A, B, C), selective_scan_reference(x, dt, A, B, C)
    )


def test_attention_is_causal() -> None:
    torch.manual_seed(0)
    block, x = Attention(8, 2), torch.randn(1, 6, 8)
    other = x.clone()
    other[:, 4:] += 1
    assert torch.allclose(block(x)[:, :4], block(other)[:, :4])
    assert not torch.allclose(block(x)[:, 4], block(other)[:, 4])


def test_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "USERS", 12)
    monkeypatch.setattr(rounds, "ITEMS", 60)
    monkeypatch.setattr(rounds, "COUNTS", (4, 6, 12))
    rounds.one_user_clients.cache_clear()
    try:
        lines = list(rounds.measure())
    finally:
        rounds.one_user_clients.cache_clear()
    assert [line.size for line in lines] == [12.0, *[None] * 5, 4.0, 6.0, None]
    assert all(line.ratio is not None and line.ratio > 0 for line in lines)
    assert [line.threads for line in lines] == [1, 2, *[1] * 7]


def test_the_stand_in_for_pfedrec_ends_with_the_same_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "USERS", 12)
    monkeypatch.setattr(rounds, "ITEMS", 60)
    rounds.one_user_clients.cache_clear()
    try:
        theirs = rounds.scorer_stand_in(12)()
        reply, _ = rounds.training(rounds.SCORER, "batched", 12)()
    finally:
        rounds.one_user_clients.cache_clear()
    torch.testing.assert_close(reply.params[ITEMS], theirs, rtol=0, atol=1e-5)


def test_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "POPULATIONS", (60, 200))
    monkeypatch.setattr(scale, "ASKED", 5)
    monkeypatch.setattr(scale, "_in_fresh_process", scale.cost_of)
    lines = list(scale.measure())
    assert [line.size for line in lines if line.size] == [60.0, 200.0]
    assert lines[0].ratio == 1.0 and lines[-1].case.startswith("1 % of 200")
