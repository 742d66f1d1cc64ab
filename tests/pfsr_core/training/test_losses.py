from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from pfsr_core.training.losses import (
    CHUNK,
    keep_local,
    magnitude,
    next_item_cross_entropy,
    proximal,
    sampled_cross_entropy,
)


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
    assert magnitude(
        params, shared, mask, norm=2.0, strength=0.05, side="both"
    ).item() == pytest.approx(0.05 / 2 * 9)


def test_magnitude_from_above_leaves_smaller_changes_alone() -> None:
    params, shared = {"a": torch.tensor([3.0, 4.0])}, {"a": torch.zeros(2)}
    mask = {"a": torch.zeros(2, dtype=torch.bool)}
    above = [
        magnitude(params, shared, mask, norm=norm, strength=0.05, side="above").item()
        for norm in (2.0, 6.0)
    ]
    assert above == pytest.approx([0.05 / 2 * 9, 0.0])
    assert magnitude(
        params, shared, mask, norm=6.0, strength=0.05, side="both"
    ).item() == pytest.approx(0.05 / 2)


def test_magnitude_has_a_finite_gradient_at_zero() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    mask = {"a": torch.zeros(3, dtype=torch.bool)}
    magnitude(
        {"a": leaf}, {"a": torch.zeros(3)}, mask, norm=2.0, strength=1.0, side="both"
    ).backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())


def batch_of(count: int, items: int) -> tuple[torch.Tensor, ...]:
    """hidden (2, count, 5), table (items + 1, 5), targets (2, count) with gaps."""
    torch.manual_seed(0)
    table = torch.randn(items + 1, 5, dtype=torch.float64)
    hidden = torch.randn(2, count, 5, dtype=torch.float64)
    targets = torch.randint(1, items + 1, (2, count))
    return hidden, table, targets.where(torch.rand(2, count) < 0.8, 0)


@pytest.mark.parametrize("count", [1, 40, CHUNK // 2, CHUNK + 3])
def test_chunks_change_neither_the_loss_nor_its_gradients(count: int) -> None:
    hidden, table, targets = batch_of(count, 30)
    targets[0, 0] = 1
    leaves = [hidden.clone().requires_grad_(), table.clone().requires_grad_()]
    real = targets > 0
    whole = 3.0 * cross_entropy(leaves[0][real] @ leaves[1][1:].T, targets[real] - 1)
    expected = torch.autograd.grad(whole, leaves)
    loss = 3.0 * next_item_cross_entropy(leaves[0], leaves[1], targets)
    torch.testing.assert_close(loss, whole)
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_all_rows_sampled_is_the_full_loss() -> None:
    hidden, table, targets = batch_of(20, 30)
    sampled = sampled_cross_entropy(hidden, table, targets, torch.randperm(30) + 1)
    torch.testing.assert_close(sampled, next_item_cross_entropy(hidden, table, targets))


def test_the_sampled_sum_of_exponentials_is_right_on_average() -> None:
    hidden, table, targets = batch_of(1, 12)
    targets[:] = 0
    targets[0, 0] = 4
    score = 0.3 * hidden[0, 0] @ table.T
    wanted = score[1:].exp().sum() - score[4].exp()
    found = []
    for seed in range(4000):
        drawn = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:4] + 1
        loss = sampled_cross_entropy(0.3 * hidden, table, targets, drawn)
        found.append((loss + score[4]).exp() - score[4].exp())
    assert torch.stack(found).mean().item() == pytest.approx(wanted.item(), rel=0.03)


def test_a_second_derivative_is_refused() -> None:
    hidden, table, targets = batch_of(3, 9)
    targets[0, 0] = 1
    leaf = hidden.requires_grad_()
    loss = next_item_cross_entropy(leaf, table, targets)
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        first.sum().backward()
