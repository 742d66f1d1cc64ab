"""Semantic soft targets: who shares, how much, and what the loss makes of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfsr_core.assembly.assemble import assemble
from pfsr_core.federated import simulation
from pfsr_core.items.soft_targets import SoftTargets, semantic_targets
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.training.losses import CHUNK, add_soft_targets, next_item_cross_entropy
from tests.helpers.tiny import tiny_settings, tiny_world
from tests.pfsr_core.training.test_batched import assert_close, updates

SHARE, TAU = 0.3, 0.1


def vectors(items: int, seed: int = 0) -> Tensor:
    rows = torch.randn(items + 1, 6, generator=torch.Generator().manual_seed(seed))
    rows[0] = 0
    return rows


def names(items: int) -> list[str]:
    return [f"item-{i}" for i in range(items)]


def dense(table: SoftTargets, items: int) -> Tensor:
    """Weights as a matrix by row numbers, the padding row first: (items + 1, items + 1)."""
    whole = torch.zeros(items + 1, items + 1)
    return whole.scatter_add(1, table.rows, table.weights)


def test_the_nearest_share_by_a_softmax_of_their_cosines() -> None:
    text = vectors(12)
    table = semantic_targets(text, names(12), SHARE, 4, TAU)(torch.arange(1, 13))
    unit = torch.nn.functional.normalize(text[1:], dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2.0)
    best, who = cosines.topk(4, dim=1)
    wanted = torch.zeros(13, 13)
    wanted[1:, 1:] = torch.zeros(12, 12).scatter(1, who, SHARE * torch.softmax(best / TAU, dim=1))
    torch.testing.assert_close(dense(table, 12), wanted)


def test_only_items_that_the_client_ranks_are_neighbours() -> None:
    candidates = torch.tensor([2, 5, 6, 11])
    table = semantic_targets(vectors(12), names(12), SHARE, 50, TAU)(candidates)
    assert table.rows.shape == (5, 11) and int(table.rows.max()) <= 4
    weights = dense(table, 4)
    torch.testing.assert_close(weights[1:].sum(1), torch.full((4,), SHARE))
    assert not weights[0].any() and not weights.diagonal().any() and not weights[:, 0].any()


def test_without_a_text_or_a_neighbour_a_target_stays_hard() -> None:
    text = vectors(5)
    text[3] = 0
    weights = dense(semantic_targets(text, names(5), SHARE, 9, TAU)(torch.arange(1, 6)), 5)
    assert not weights[3].any() and not weights[:, 3].any()
    torch.testing.assert_close(weights.sum(1)[[1, 2, 4, 5]], torch.full((4,), SHARE))
    alone = semantic_targets(text, names(5), SHARE, 9, TAU)(torch.tensor([4]))
    assert not alone.weights.any()


@pytest.mark.parametrize("alike", [False, True], ids=["other texts", "like texts"])
def test_the_order_of_the_items_does_not_matter(alike: bool) -> None:
    """Also where many items are equally near: then the raw ids decide."""
    text, ids = vectors(40), names(40)
    if alike:
        text[1:21], text[21:] = text[1], text[21]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    moved = torch.cat([text[:1], text[1:][order]])
    everything = torch.arange(1, 41)
    one = dense(semantic_targets(text, ids, SHARE, 7, TAU)(everything), 40)[1:, 1:]
    other = semantic_targets(moved, [ids[i] for i in order], SHARE, 7, TAU)(everything)
    torch.testing.assert_close(dense(other, 40)[1:, 1:], one[order][:, order])
    if alike:  # and nobody is the neighbour of all
        assert int((one > 0).sum(0).max()) < 20


def problem(count: int, items: int) -> tuple[Tensor, Tensor, Tensor, SoftTargets]:
    """hidden (2, count, 5), table, targets with gaps, soft targets; in float64."""
    torch.manual_seed(0)
    table = torch.randn(items + 1, 5, dtype=torch.float64)
    hidden = torch.randn(2, count, 5, dtype=torch.float64)
    targets = torch.randint(1, items + 1, (2, count)).where(torch.rand(2, count) < 0.8, 0)
    targets[0, 0] = 1
    soft = semantic_targets(vectors(items), names(items), SHARE, 6, TAU)
    return hidden, table, targets, soft(torch.arange(1, items + 1)).of(targets)


@pytest.mark.parametrize("count", [1, CHUNK + 3])
def test_the_gradient_is_p_minus_q(count: int) -> None:
    hidden, table, targets, soft = problem(count, 30)
    leaves = [hidden.requires_grad_(), table.requires_grad_()]
    real = targets > 0
    q = torch.nn.functional.one_hot(targets[real], 31).double()
    parts = soft.weights[real].double()
    q = q * (1 - parts.sum(1, keepdim=True))
    q = q.scatter_add(1, soft.rows[real], parts)[:, 1:]
    torch.testing.assert_close(q.sum(1), torch.ones(len(q), dtype=torch.float64))
    logits = leaves[0][real] @ leaves[1][1:].T
    whole = -(q * torch.log_softmax(logits, 1)).sum(1).mean()
    loss = next_item_cross_entropy(leaves[0], leaves[1], targets, soft)
    torch.testing.assert_close(loss, whole)
    expected = torch.autograd.grad(whole, [logits, *leaves], retain_graph=True)
    torch.testing.assert_close(expected[0], (torch.softmax(logits, 1) - q) / len(q))
    for found, wanted in zip(torch.autograd.grad(loss, leaves), expected[1:], strict=True):
        torch.testing.assert_close(found, wanted)


def test_no_weight_is_cross_entropy() -> None:
    hidden, table, targets, soft = problem(40, 30)
    nothing = SoftTargets(soft.rows, torch.zeros_like(soft.weights))
    found = next_item_cross_entropy(hidden, table, targets, nothing)
    torch.testing.assert_close(found, next_item_cross_entropy(hidden, table, targets))


def test_the_form_for_logits_is_the_same_loss() -> None:
    hidden, table, targets, soft = problem(40, 30)
    logits, labels = (hidden @ table[1:].T), targets - 1
    hard = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none"
    )
    losses = add_soft_targets(hard.view(labels.shape), logits, labels, soft)
    found = losses.sum() / (targets > 0).sum()
    torch.testing.assert_close(found, next_item_cross_entropy(hidden, table, targets, soft))


def run_with(**changes: Value) -> simulation.ServerState:
    settings, federation, assembly = tiny_world(**changes)
    return simulation.run(assembly.algorithm, federation.clients, rounds=2, seed=1)[0]


def test_share_zero_is_cross_entropy_bit_for_bit() -> None:
    plain = run_with(model__items="semantic", algorithm__name="fed-avg")
    changes: dict[str, Value] = {"model__items": "semantic", "algorithm__name": "fed-avg"}
    zero = run_with(**changes, train__semantic_share=0.0, train__semantic_neighbours=3)
    some = run_with(**changes, train__semantic_share=0.3, train__semantic_neighbours=3)
    assert all(torch.equal(zero.params[n], plain.params[n]) for n in plain.params)
    assert not all(torch.equal(some.params[n], plain.params[n]) for n in plain.params)


@pytest.mark.parametrize("algorithm", ["pfsr", "fed-avg"])
@pytest.mark.parametrize("items", ["private", "semantic", "adapted"])
def test_a_batch_equals_the_loop(algorithm: str, items: str) -> None:
    """With PFSR's mask and magnitude loss too; clients rank other items where tables are theirs."""
    changes: dict[str, Value] = {
        "algorithm__name": algorithm,
        "model__items": items,
        "train__semantic_share": 0.4,
        "train__semantic_neighbours": 5,
    }
    loop, batched = (updates(engine, **changes) for engine in ("loop", "batched"))
    for expected, found in zip(loop[-1], batched[-1], strict=True):
        assert_close(found.params, expected.params, 1e-7)
        assert_close(found.state, expected.state, 1e-7)
        assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)


def test_with_sampled_negatives_it_is_refused() -> None:
    settings = tiny_settings(train__semantic_share=0.3, train__negatives=5)
    with pytest.raises(SettingsError, match=r"semantic-share with train.negatives.*negatives = 0"):
        assemble(settings, ["a", "b"])
