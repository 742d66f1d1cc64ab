"""The associative block against its literal definition, and the leak test of the whole model."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pfsr_core.models.encoders.associative_mamba import AssociativeMamba, associative_encoder
from pfsr_core.models.encoders.base import SequenceEncoder
from pfsr_core.models.next_item import NextItemModel
from pfsr_core.models.ops.dropout import Noise
from pfsr_core.models.ops.ssd import (
    Direction,
    ScanInputs,
    associative_scan_reference,
    reversed_scan_of_prefix,
    ssd_chunked,
)


def random_scan(length: int, seed: int = 0, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    H, P, N = 3, 2, 4
    return {
        "x": normal(batch, length, H, P),
        "dt": normal(batch, length, H).exp() * 0.3,
        "B": normal(batch, length, N),
        "C": normal(batch, length, N),
        "a": -normal(H).exp(),
        "a_anchored": -normal(H).exp(),
        "gate": torch.sigmoid(normal(batch, length, H)),
    }


def arguments(scan: Mapping[str, Tensor | None]) -> tuple[ScanInputs, Tensor, Direction | None]:
    inputs = ScanInputs(*(scan[name] for name in ("x", "dt", "B", "C")))
    anchored = None
    if scan["gate"] is not None:
        anchored = Direction(scan["a_anchored"], scan["gate"])
    return inputs, scan["a"], anchored


def chunked(scan: Mapping[str, Tensor | None], chunk: int) -> Tensor:
    return ssd_chunked(*arguments(scan), chunk)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 40), chunk=st.integers(1, 45), seed=st.integers(0, 10**6))
def test_chunked_equals_the_sequential_reference(length: int, chunk: int, seed: int) -> None:
    scan = random_scan(length, seed)
    expected = associative_scan_reference(*arguments(scan))
    torch.testing.assert_close(chunked(scan, chunk), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("chunk", [4, 64])
def test_forward_direction_alone(chunk: int) -> None:
    scan = {**random_scan(23), "a_anchored": None, "gate": None}
    expected = associative_scan_reference(*arguments(scan))
    torch.testing.assert_close(chunked(scan, chunk), expected, rtol=1e-9, atol=1e-11)


def test_anchored_direction_equals_the_explicit_reversed_scan_of_every_prefix() -> None:
    scan = random_scan(17)
    forward_only = {**scan, "a_anchored": None, "gate": None}
    both = chunked(scan, 5) - chunked(forward_only, 5)
    for t in range(17):
        parts = (scan["x"], scan["dt"], scan["B"], scan["a_anchored"])
        state = reversed_scan_of_prefix(*parts, seq_length=t + 1)
        y = torch.einsum("bhpn,bn->bhp", state, scan["C"][:, t])
        expected = scan["gate"][:, t, :, None] * y
        torch.testing.assert_close(both[:, t], expected, rtol=1e-9, atol=2e-9)


def test_one_item_by_hand() -> None:
    scan = {
        "x": torch.tensor([[[[3.0]]]]),
        "dt": torch.tensor([[[0.5]]]),
        "B": torch.tensor([[[2.0]]]),
        "C": torch.tensor([[[4.0]]]),
        "a": torch.tensor([-1.0]),
        "a_anchored": torch.tensor([-1.0]),
        "gate": torch.tensor([[[0.25]]]),
    }
    # C.B * (1 + gate) * dt * x = 8 * 1.25 * 1.5
    assert chunked(scan, 8).item() == pytest.approx(15.0)


def test_very_long_histories_stay_finite() -> None:
    scan = random_scan(3000, batch=1)
    scan = {name: value.float() for name, value in scan.items()}
    assert bool(chunked(scan, 64).isfinite().all())


def test_gradients_of_the_chunked_form() -> None:
    scan = random_scan(7, batch=1)
    values = [tensor.requires_grad_() for tensor in scan.values()]

    def scanned(*tensors: Tensor) -> Tensor:
        return chunked(dict(zip(scan, tensors, strict=True)), 3)

    assert torch.autograd.gradcheck(scanned, values)
    assert torch.autograd.gradgradcheck(scanned, values)


def test_no_gradient_is_nan_where_the_future_is_masked() -> None:
    scan = random_scan(60)
    scan["dt"] = (scan["dt"] * 100).requires_grad_()  # exp(a (c_t - c_s)) overflows for s > t
    chunked(scan, 64).sum().backward()
    assert bool(scan["dt"].grad.isfinite().all())


def test_dt_starts_in_mambas_own_range() -> None:
    block = AssociativeMamba(16, num_heads=8)
    dt = nn.functional.softplus(block.dt_bias)
    assert bool(((dt > 9e-4) & (dt < 0.11)).all())


def test_heads_must_divide_the_inner_width() -> None:
    with pytest.raises(ValueError, match="num_heads=5 does not divide"):
        AssociativeMamba(16, num_heads=5)


class FlippedMamba(SequenceEncoder):
    """The published mistake: a backward branch over the whole sequence, loss at every position."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = AssociativeMamba(dim, num_heads=2, state_dim=4)

    def forward(self, x: Tensor, _noise: Noise | None = None) -> Tensor:
        flipped: Tensor = self.inner(x.flip(1)).flip(1)
        return self.inner(x) + flipped


@torch.no_grad()
def leak(encoder: SequenceEncoder) -> float:
    """Largest change at positions < t over all t when the items >= t are exchanged."""
    torch.manual_seed(3)
    model = NextItemModel(30, 16, encoder, dropout_rate=0.3).double().eval()
    items = torch.randint(1, 31, (4, 12))
    before, largest = model(items), 0.0
    for t in range(1, 12):
        changed = items.clone()
        changed[:, t:] = torch.randint(1, 31, (4, 12 - t))
        largest = max(largest, float((model(changed)[:, :t] - before[:, :t]).abs().max()))
    return largest


def test_the_target_does_not_leak() -> None:
    encoder = associative_encoder(
        16, num_layers=2, dropout_rate=0.3, num_heads=2, state_dim=4, chunk_length=5
    )
    assert leak(encoder) < 1e-12


def test_the_leak_test_finds_a_leak() -> None:
    assert leak(FlippedMamba(16)) > 1e-3
