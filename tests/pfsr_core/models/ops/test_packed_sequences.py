from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, vmap

from pfsr_core.models.encoders.associative_mamba import associative_encoder
from pfsr_core.models.encoders.gru4rec import gru4rec_encoder
from pfsr_core.models.encoders.mamba1 import mamba1_encoder
from pfsr_core.models.next_item import NextItemModel
from pfsr_core.models.ops import packed_sequences
from pfsr_core.models.ops.dropout import draw_bits
from pfsr_core.models.ops.packed_sequences import find_packing

ENCODERS = {
    "associative": lambda: associative_encoder(8, num_layers=2, dropout_rate=0.3, state_dim=4),
    "mamba1": lambda: mamba1_encoder(8, 2, state_dim=4, conv_width=4, expand=2, dropout_rate=0.3),
    "gru4rec": lambda: gru4rec_encoder(8, 1, 12, 0.3),
}
ITEMS = torch.tensor([[3, 1, 4, 1, 5], [2, 7, 0, 0, 0], [6, 0, 0, 0, 0]])


@pytest.fixture(params=ENCODERS)
def model(request: pytest.FixtureRequest) -> NextItemModel:
    torch.manual_seed(0)
    return NextItemModel(9, 8, ENCODERS[request.param](), dropout_rate=0.3)


def test_pad_undoes_pack() -> None:
    packed = find_packing(ITEMS)
    assert packed is not None and packed.lengths.tolist() == [5, 2, 1]
    x = torch.randn(3, 5, 4) * (ITEMS > 0)[..., None]
    assert packed.pack(x).shape == (8, 4)
    assert torch.equal(packed.pad(packed.pack(x)), x)


@pytest.mark.parametrize("items", [torch.ones(3, 4).long(), torch.zeros(2, 3).long()])
def test_nothing_to_pack(items: Tensor) -> None:
    assert find_packing(items) is None


def test_not_inside_transforms() -> None:
    """A shape may not depend on the values of one mapped client."""
    assert (
        vmap(lambda items: items * float(find_packing(items) is None))(ITEMS[None]).eq(ITEMS).all()
    )


@pytest.mark.parametrize("with_noise", [False, True])
def test_packed_and_padded_give_the_same(
    model: NextItemModel, with_noise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = draw_bits((3, 5, model.noise_width), np.random.default_rng(0)) if with_noise else None
    weights = torch.randn(8, 8)
    found = []
    for worth_it in (0.95, 0.0):
        monkeypatch.setattr(packed_sequences, "WORTH_IT", worth_it)
        hidden = model(ITEMS, bits)[ITEMS > 0]
        gradients = torch.autograd.grad((hidden * weights).sum(), list(model.parameters()))
        found.append([hidden, *gradients])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)


def test_only_real_places_reach_the_layers(model: NextItemModel) -> None:
    seen = []
    model.norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape))
    parameters = dict(model.named_parameters())
    functional_call(model, parameters, (ITEMS, None))
    assert seen == [(8, 8) if getattr(model.encoder, "packs", False) else (3, 5, 8)]
