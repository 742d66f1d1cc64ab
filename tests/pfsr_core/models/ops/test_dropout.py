from __future__ import annotations

import numpy as np
import pytest
import torch

from pfsr_core.models.ops.dropout import Dropout, Noise, draw_bits


def bits(*shape: int, seed: int = 0) -> torch.Tensor:
    return draw_bits(shape, np.random.default_rng(seed))


@pytest.mark.parametrize("p", [0.1, 0.4, 0.9])
def test_drops_the_share_it_names_and_keeps_the_mean(p: float) -> None:
    layer = Dropout(p, 500)
    out = layer(torch.ones(40, 50, 500), Noise(bits(40, 50, 500)))
    assert float((out == 0).float().mean()) == pytest.approx(p, abs=0.002)
    assert float(out.mean()) == pytest.approx(1.0, abs=0.01)
    assert torch.unique(out).tolist() == [0.0, pytest.approx(1 / (1 - p), rel=1e-4)]


def test_gradient_is_the_mask() -> None:
    layer, x = Dropout(0.5, 8), torch.randn(2, 3, 8, requires_grad=True)
    random = bits(2, 3, 8)
    layer(x, Noise(random)).sum().backward()
    torch.testing.assert_close(x.grad, layer.mask(random, x.dtype))


def test_is_the_identity_without_noise_or_probability() -> None:
    x = torch.randn(2, 3, 8)
    assert Dropout(0.5, 8)(x, None) is x
    noise = Noise(bits(2, 3, 8))
    assert Dropout(0.0, 8)(x, noise) is x and noise.used == 0


def test_layers_take_different_columns() -> None:
    layer, noise, x = Dropout(0.5, 8), Noise(bits(4, 4, 16)), torch.ones(4, 4, 8)
    assert not torch.equal(layer(x, noise), layer(x, noise))


def test_too_little_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_width"):
        Dropout(0.5, 8)(torch.ones(1, 1, 8), Noise(bits(1, 1, 7)))


def test_bits_follow_from_the_generator_and_fill_any_shape() -> None:
    assert torch.equal(bits(3, 5, 7), bits(3, 5, 7))
    assert not torch.equal(bits(3, 5, 7), bits(3, 5, 7, seed=1))
    assert bits(3, 5, 7).shape == (3, 5, 7) and bits(0, 4).shape == (0, 4)
    values = bits(200_000).double()
    assert abs(float(values.mean())) < 200 and float(values.std()) == pytest.approx(18918, rel=0.01)
