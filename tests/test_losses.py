from __future__ import annotations

import math

import pytest
import torch

from pfsr_core.losses import keep_local, magnitude, next_item_cross_entropy, proximal


def test_cross_entropy_over_all_rows_but_padding_at_real_positions() -> None:
    table = torch.tensor([[9.0], [1.0], [2.0]])
    hidden = torch.tensor([[[1.0], [0.0], [5.0]]])
    targets = torch.tensor([[2, 1, 0]])
    loss = next_item_cross_entropy(hidden, table, targets)
    first = math.log(math.exp(1) + math.exp(2)) - 2
    assert loss.item() == pytest.approx((first + math.log(2)) / 2, rel=1e-6)


def test_proximal_by_hand() -> None:
    params = {"a": torch.tensor([1.0, 3.0]), "extra": torch.tensor([9.0])}
    assert proximal(params, {"a": torch.zeros(2)}, 0.5).item() == 2.5


def test_keep_local_counts_masked_coordinates_only() -> None:
    params, old = {"a": torch.tensor([1.0, 3.0])}, {"a": torch.zeros(2)}
    mask = {"a": torch.tensor([True, False])}
    assert keep_local(params, old, mask, 0.1).item() == pytest.approx(0.05)


def test_magnitude_pulls_the_norm_of_the_rest_to_its_target() -> None:
    params, shared = {"a": torch.tensor([3.0, 100.0, 4.0])}, {"a": torch.zeros(3)}
    mask = {"a": torch.tensor([False, True, False])}
    assert magnitude(params, shared, mask, 2.0, 0.05, "both").item() == pytest.approx(0.05 / 2 * 9)


def test_magnitude_from_above_leaves_smaller_changes_alone() -> None:
    params, shared = {"a": torch.tensor([3.0, 4.0])}, {"a": torch.zeros(2)}
    mask = {"a": torch.zeros(2, dtype=torch.bool)}
    above = [magnitude(params, shared, mask, norm, 0.05, "above").item() for norm in (2.0, 6.0)]
    assert above == pytest.approx([0.05 / 2 * 9, 0.0])
    assert magnitude(params, shared, mask, 6.0, 0.05, "both").item() == pytest.approx(0.05 / 2)


def test_magnitude_has_a_finite_gradient_at_zero() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    mask = {"a": torch.zeros(3, dtype=torch.bool)}
    magnitude({"a": leaf}, {"a": torch.zeros(3)}, mask, 2.0, 1.0, "both").backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
