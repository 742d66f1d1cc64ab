"""Mamba-1 against mamba-ssm: names, shapes, initialisation, outputs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import conv1d, softplus

from pfsr_core.models.encoders.layers import causal_depthwise_conv
from pfsr_core.models.encoders.mamba1 import DT_MAX, DT_MIN, Mamba1Mixer, mamba1_encoder

GOLDEN = Path(__file__).parent / "golden" / "mamba1.safetensors"
CASES = {
    "small": {"model_dim": 6, "state_dim": 4, "conv_width": 4, "expand": 2},
    "two-ranks": {"model_dim": 20, "state_dim": 3, "conv_width": 3, "expand": 1},
}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def golden_case(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The block's weights, and everything else, by names without the case's prefix."""
    tensors = {
        name.removeprefix(f"{case}/"): tensor
        for name, tensor in load_file(GOLDEN).items()
        if name.startswith(f"{case}/")
    }
    prefix = "weight/"
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return weights, tensors


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> tuple[Mamba1Mixer, dict[str, Tensor]]:
    weights, tensors = golden_case(request.param)
    mixer = Mamba1Mixer(**CASES[request.param]).double()
    mixer.load_state_dict(weights, strict=True)
    return mixer, tensors


def test_equals_mamba_ssm(golden: tuple[Mamba1Mixer, dict[str, Tensor]]) -> None:
    mixer, tensors = golden
    x = tensors["input"].requires_grad_()
    output = mixer(x)
    close(output, tensors["output"])
    (output * tensors["cotangent"]).sum().backward()
    assert x.grad is not None
    close(x.grad, tensors["grad/input"])
    for name, parameter in mixer.named_parameters():
        assert parameter.grad is not None
        close(parameter.grad, tensors[f"grad/{name}"])


def test_steps_equal_mamba_ssm(golden: tuple[Mamba1Mixer, dict[str, Tensor]]) -> None:
    mixer, tensors = golden
    state = mixer.initial_state(2)
    for t, expected in enumerate(tensors["output"].unbind(1)):
        output, state = mixer.step(tensors["input"][:, t], state)
        close(output, expected)


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_of_mamba_ssm(case: str) -> None:
    """Nine tensors, in either direction: our own state has nothing more and nothing else."""
    weights, _ = golden_case(case)
    own = Mamba1Mixer(**CASES[case]).state_dict()
    assert len(own) == 9
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in weights.items()}


def test_initialisation() -> None:
    torch.manual_seed(0)
    mixer = Mamba1Mixer(64, 16, 4, 2)
    dt = softplus(mixer.dt_proj.bias)
    assert (dt >= DT_MIN * 0.999).all() and (dt <= DT_MAX * 1.001).all()
    share_below_the_middle = (dt < (DT_MIN * DT_MAX) ** 0.5).float().mean().item()
    assert 0.3 < share_below_the_middle < 0.7
    assert mixer.dt_proj.weight.abs().max() <= 4**-0.5
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(mixer.D, torch.ones(128))


def test_layers_keep_the_initialisation_of_dt() -> None:
    encoder = mamba1_encoder(16, 2, state_dim=4, conv_width=4, expand=2, dropout_rate=0.2)
    biases = [p for name, p in encoder.named_parameters() if name.endswith("dt_proj.bias")]
    assert len(biases) == 2
    for bias in biases:
        assert softplus(bias).max() <= DT_MAX * 1.001


@pytest.mark.parametrize("width", [1, 2, 4])
def test_causal_depthwise_conv(width: int) -> None:
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    weight, bias = torch.randn(5, 1, width).double(), torch.randn(5).double()
    expected = conv1d(x.mT, weight, bias, padding=width - 1, groups=5)[..., :7].mT
    close(causal_depthwise_conv(x, weight, bias), expected)
