from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pfsr_core.params import Params
from pfsr_core.training.fisher import (
    Samples,
    diagonal_fisher,
    empty_masks,
    kept_share,
    merge_by_mask,
    minmax_mask,
    quantile_mask,
)


def log_probability(
    params: Params, _constants: Params, prefix: Tensor, length: Tensor, target: Tensor
) -> Tensor:
    logits = params["w"].index_select(0, prefix[:1])[0] * 2.0 + params["b"] + 0.0 * length
    return torch.log_softmax(logits, 0).index_select(0, target.reshape(1))[0]


def samples(count: int) -> Samples:
    generator = torch.Generator().manual_seed(1)
    return Samples(
        torch.randint(0, 3, (count, 5), generator=generator),
        torch.randint(1, 6, (count,), generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )


def test_equals_a_backward_pass_a_sample() -> None:
    params = {"w": torch.randn(3, 4), "b": torch.randn(4)}
    found = samples(17)
    expected = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for prefix, length, target in zip(*found[:3], strict=True):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        log_probability(leaves, {}, prefix, length, target).backward()
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            expected[name] += leaf.grad.square() / 17
    for chunk in (1, 4, 64):
        got = diagonal_fisher(log_probability, params, {}, found, chunk)
        torch.testing.assert_close(got, expected)


def test_quantile_keeps_the_top_share_of_each_tensor() -> None:
    fisher = {"a": torch.tensor([[4.0, 1.0], [3.0, 2.0]]), "b": torch.arange(1.0, 9.0)}
    masks = quantile_mask(fisher, 0.5)
    assert masks["a"].tolist() == [[True, False], [True, False]]
    assert masks["b"].tolist() == [False] * 4 + [True] * 4
    assert kept_share(masks) == {"a": 0.5, "b": 0.5, "": 0.5}


def test_a_zero_initialised_bias_is_judged_by_its_fisher_not_by_its_value() -> None:
    fisher = {"bias": torch.tensor([0.0, 2.0])}
    mask = quantile_mask(fisher, 0.5)["bias"]
    merged = merge_by_mask({"bias": mask}, {"bias": torch.zeros(2)}, {"bias": torch.ones(2)})
    assert merged["bias"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("rho", [0.0, 0.3, 1.0])
def test_what_has_no_information_is_never_kept(rho: float) -> None:
    assert not quantile_mask({"a": torch.zeros(10)}, rho)["a"].any()


def test_minmax_by_hand() -> None:
    masks = minmax_mask({"a": torch.tensor([1.0, 2.0, 3.0, 5.0])}, threshold=0.4)
    assert masks["a"].tolist() == [False, False, True, True]  # scaled: 0, .25, .5, 1


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_minmax_of_a_constant_tensor_keeps_nothing(value: float) -> None:
    assert not minmax_mask({"a": torch.full((3,), value)}, 0.4)["a"].any()


def test_masks_are_boolean_and_empty_masks_keep_nothing() -> None:
    masks = empty_masks({"a": torch.ones(2)})
    assert masks["a"].dtype == torch.bool and not masks["a"].any()
