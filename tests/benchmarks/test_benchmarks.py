"""Every benchmark runs, in small, and measures what it says."""

from __future__ import annotations

import pytest
import torch

from pfsr_core.benchmarks import encoder, scan, serve, timing
from pfsr_core.benchmarks.peers import Attention, step_by_step
from pfsr_core.models.selective_scan import selective_scan_reference


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
