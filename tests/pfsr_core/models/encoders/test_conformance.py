"""What every encoder promises, held against every encoder: add one line to put a new one here."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pfsr_core.models.encoders.associative_mamba import associative_encoder
from pfsr_core.models.encoders.attention_masks import AttentionEncoder
from pfsr_core.models.encoders.gru4rec import gru4rec_encoder
from pfsr_core.models.encoders.hstu import hstu_encoder
from pfsr_core.models.encoders.mamba1 import mamba1_encoder
from pfsr_core.models.encoders.sasrec import sasrec_encoder
from pfsr_core.models.ops.dropout import Noise, draw_bits

Build = Callable[[int, float], Any]  # (embedding_dim, dropout) to an encoder

ENCODERS_UNDER_TEST: dict[str, Build] = {
    "mamba1": lambda dim, dropout: mamba1_encoder(
        dim, 1, state_dim=4, conv_width=4, expand=2, dropout_rate=dropout
    ),
    "mamba1-2-layers": lambda dim, dropout: mamba1_encoder(
        dim, 2, state_dim=4, conv_width=3, expand=2, dropout_rate=dropout
    ),
    "sasrec": lambda dim, dropout: sasrec_encoder(dim, 2, 2, 700, dropout),
    "hstu": lambda dim, dropout: hstu_encoder(dim, 2, 2, 700, dropout),
    "gru4rec": lambda dim, dropout: gru4rec_encoder(dim, 2, 12, dropout),
    "associative": lambda dim, dropout: associative_encoder(
        dim, num_layers=1, dropout_rate=dropout, state_dim=4, num_heads=2, chunk_length=16
    ),
    "associative-2-layers": lambda dim, dropout: associative_encoder(
        dim, num_layers=2, dropout_rate=dropout, state_dim=3, num_heads=4, chunk_length=5
    ),
    "forward-only": lambda dim, dropout: associative_encoder(
        dim, num_layers=1, dropout_rate=dropout, state_dim=4, num_heads=2, anchored=False
    ),
}

DIM = 8


@pytest.fixture(params=ENCODERS_UNDER_TEST)
def build(request: pytest.FixtureRequest) -> Build:
    torch.manual_seed(11)
    return ENCODERS_UNDER_TEST[request.param]


@pytest.fixture
def encoder(build: Build) -> Any:
    """In float64 and evaluation mode, its parameters moved away from zeros and ones."""
    encoder = build(DIM, 0.5).double().eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def histories(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, dtype=torch.float64)


def random_bits(encoder: Any, *shape: int, seed: int = 0) -> Tensor:
    return draw_bits((*shape, encoder.noise_width), np.random.default_rng(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class TestSequence:
    def test_keeps_shape_and_dtype(self, build: Build) -> None:
        encoder = build(DIM, 0.0)
        output = encoder(histories(3, 5).float())
        assert output.shape == (3, 5, DIM)
        assert output.dtype == torch.float32

    @pytest.mark.parametrize("changed", [1, 6, 12])
    def test_a_later_change_leaves_earlier_outputs(self, encoder: Any, changed: int) -> None:
        x, other = histories(2, 13), histories(2, 13)
        other[:, :changed] = x[:, :changed]
        before, after = encoder(x), encoder(other)
        close(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed])

    def test_an_early_change_reaches_the_last_output(self, encoder: Any) -> None:
        x = histories(1, 9)
        other = x.clone()
        other[:, 0] = histories(1)  # not x plus a number, which a norm takes away again
        assert not torch.allclose(encoder(other)[:, -1], encoder(x)[:, -1], atol=1e-9)

    def test_right_padding_changes_nothing(self, encoder: Any) -> None:
        x = histories(2, 6)
        padded = torch.cat([x, torch.zeros(2, 11, DIM, dtype=x.dtype)], dim=1)
        close(encoder(padded)[:, :6], encoder(x))

    def test_sequences_do_not_see_each_other(self, encoder: Any) -> None:
        x = histories(3, 7)
        close(encoder(x)[1:2], encoder(x[1:2]))

    def test_long_history_in_float32(self, build: Build) -> None:
        encoder = build(DIM, 0.0).eval()
        x = histories(2, 700)
        exact = copy.deepcopy(encoder).double()(x)
        output = encoder(x.float())
        output.square().mean().backward()
        close(output.double(), exact, 1e-4)
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())

    def test_one_interaction(self, encoder: Any) -> None:
        x = histories(2, 4)
        close(encoder(x[:, :1]), encoder(x)[:, :1])


class TestStep:
    def test_item_by_item_equals_the_whole(self, encoder: Any) -> None:
        x = histories(3, 40)
        state, outputs = encoder.initial_state(3), []
        for t in range(x.shape[1]):
            output, state = encoder.step(x[:, t], state)
            outputs.append(output)
        close(torch.stack(outputs, dim=1), encoder(x))

    def test_a_sequence_goes_on_from_a_state(self, encoder: Any) -> None:
        if isinstance(encoder, AttentionEncoder):
            pytest.skip("attention goes on from keys and values: see test_compressors")
        x, state = histories(3, 20), encoder.initial_state(3)
        for t in range(7):
            _, state = encoder.step(x[:, t], state)
        close(encoder(x[:, 7:], encoder_state=state), encoder(x)[:, 7:])
        outputs, after = encoder.forward_from(x[:, 7:], state)
        close(outputs, encoder(x)[:, 7:])
        for t in range(7, 20):
            _, state = encoder.step(x[:, t], state)
        assert after.keys() == state.keys()
        for name, tensor in state.items():
            close(after[name], tensor)
        one = encoder.forward_from(x[:, :1], after)[1]
        for name, tensor in encoder.step(x[:, 0], state)[1].items():
            close(one[name], tensor)

    def test_writes_none_of_its_inputs(self, encoder: Any) -> None:
        x = histories(2, 2)
        _, state = encoder.step(x[:, 0], encoder.initial_state(2))
        kept_x, kept_state = x.clone(), {name: tensor.clone() for name, tensor in state.items()}
        encoder.step(x[:, 1], state)
        assert torch.equal(x, kept_x)
        assert state.keys() == kept_state.keys()
        assert all(torch.equal(state[name], kept_state[name]) for name in state)

    def test_state_keeps_names_shapes_and_dtypes(self, encoder: Any) -> None:
        state = encoder.initial_state(2)
        _, after = encoder.step(histories(2), state)
        assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
            k: (v.shape, v.dtype) for k, v in state.items()
        }
        assert all(tensor.shape[0] == 2 for tensor in state.values())
        floating = [t for t in state.values() if t.is_floating_point()]
        assert floating and all(tensor.dtype == torch.float64 for tensor in floating)

    @torch.no_grad()
    def test_names_say_what_is_what(self, build: Build) -> None:
        """A store gives a state back in another order. In float32 a kernel may take the step."""
        encoder, x = build(DIM, 0.0), histories(2, 2).float()
        _, state = encoder.step(x[:, 0], encoder.initial_state(2))
        found, expected = (
            encoder.step(x[:, 1], {name: state[name] for name in names})
            for names in (sorted(state, reverse=True), state)
        )
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(found[1][name], tensor) for name, tensor in expected[1].items())

    def test_states_of_sequences_can_be_picked(self, encoder: Any) -> None:
        """Serving keeps one state per user: rows of a batch state are states."""
        x = histories(3, 2)
        rows = torch.tensor([2, 0])
        _, state = encoder.step(x[:, 0], encoder.initial_state(3))
        picked, _ = encoder.step(x[rows, 1], {k: v[rows] for k, v in state.items()})
        whole, _ = encoder.step(x[:, 1], state)
        close(picked, whole[rows])


class TestDropout:
    def test_acts_with_noise_only(self, build: Build) -> None:
        encoder, x = build(DIM, 0.5).train(), histories(2, 6).float()
        first, second = (Noise(random_bits(encoder, 2, 6, seed=seed)) for seed in (0, 1))
        assert torch.equal(encoder(x), encoder(x))
        assert not torch.equal(encoder(x, first), encoder(x, second))

    def test_same_bits_same_output_and_every_bit_is_taken(self, build: Build) -> None:
        encoder, x = build(DIM, 0.5), histories(2, 6).float()
        bits = random_bits(encoder, 2, 6)
        noise = Noise(bits)
        assert torch.equal(encoder(x, noise), encoder(x, Noise(bits)))
        assert noise.used == encoder.noise_width > 0

    def test_padding_with_further_bits_changes_nothing(self, encoder: Any) -> None:
        x, bits = histories(2, 6), random_bits(encoder, 2, 6)
        padded = torch.cat([x, torch.zeros(2, 3, DIM, dtype=x.dtype)], dim=1)
        longer = torch.cat([bits, random_bits(encoder, 2, 3, seed=1)], dim=1)
        close(encoder(padded, Noise(longer))[:, :6], encoder(x, Noise(bits)))

    def test_no_noise_is_wanted_without_dropout(self, build: Build) -> None:
        assert build(DIM, 0.0).noise_width == 0


class TestGradients:
    def test_gradcheck(self, encoder: Any) -> None:
        names = [name for name, _ in encoder.named_parameters()]
        values = [p.detach().clone().requires_grad_() for p in encoder.parameters()]

        def output(x: Tensor, *parameters: Tensor) -> Tensor:
            return functional_call(encoder, dict(zip(names, parameters, strict=True)), (x,))

        x = histories(2, 4).requires_grad_()
        assert torch.autograd.gradcheck(output, (x, *values), fast_mode=True, atol=1e-6)

    def test_every_parameter_is_used(self, encoder: Any) -> None:
        (encoder(histories(2, 6)) * histories(2, 6)).sum().backward()
        unused = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
        # A key's bias adds the same number to every score of a query: softmax does not see it.
        assert [name for name in unused if not name.endswith("key.bias")] == []

    def test_per_sample_gradients(self, encoder: Any) -> None:
        """``vmap(grad)``, which the Fisher information needs, equals a loop of backward passes."""
        x, weights = histories(3, 12), histories(12)
        parameters = {name: p.detach() for name, p in encoder.named_parameters()}

        def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
            return (functional_call(encoder, values, (sample[None],))[0] * weights).sum()

        batched = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
        for index, sample in enumerate(x):
            encoder.zero_grad()
            (encoder(sample[None])[0] * weights).sum().backward()
            for name, parameter in encoder.named_parameters():
                close(batched[name][index], parameter.grad)

    def test_clients_with_parameters_of_their_own(self, encoder: Any) -> None:
        """Stacked parameters of several clients, each on its own batch."""
        x, weights = histories(2, 3, 5), histories(3, 5)
        stacked = {
            name: torch.stack([p.detach(), 1.1 * p.detach()])
            for name, p in encoder.named_parameters()
        }

        def loss(values: dict[str, Tensor], batch: Tensor) -> Tensor:
            return (functional_call(encoder, values, (batch,)) * weights).sum()

        batched = vmap(grad(loss))(stacked, x)
        for client in range(2):
            values = {name: tensor[client] for name, tensor in stacked.items()}
            for name, gradient in grad(loss)(values, x[client]).items():
                close(batched[name][client], gradient)

    def test_dropout_of_mapped_clients_is_that_of_each_alone(self, encoder: Any) -> None:
        x, bits = histories(2, 3, 6), random_bits(encoder, 2, 3, 6)
        values = {name: p.detach() for name, p in encoder.named_parameters()}

        def loss(values: dict[str, Tensor], batch: Tensor, bits: Tensor) -> Tensor:
            return functional_call(encoder, values, (batch, Noise(bits))).square().sum()

        batched = vmap(grad(loss), in_dims=(None, 0, 0))(values, x, bits)
        for client in range(2):
            for name, gradient in grad(loss)(values, x[client], bits[client]).items():
                close(batched[name][client], gradient)

    def test_inputs_are_not_written(self, encoder: Any) -> None:
        x = histories(2, 6).requires_grad_()
        kept = x.detach().clone()
        encoder(x).sum().backward()
        assert torch.equal(x.detach(), kept)


class TestParameters:
    def test_state_dict_round_trip(self, build: Build) -> None:
        first, second = build(DIM, 0.2).eval(), build(DIM, 0.2).eval()
        x = histories(2, 6).float()
        assert not torch.equal(first(x), second(x))
        second.load_state_dict(first.state_dict(), strict=True)
        assert torch.equal(first(x), second(x))

    def test_no_buffers(self, build: Build) -> None:
        """Only parameters travel and are averaged: nothing may hide in a buffer."""
        assert dict(build(DIM, 0.2).named_buffers()) == {}

    def test_seed_decides_the_initialisation(self, build: Build) -> None:
        torch.manual_seed(5)
        first: nn.Module = build(DIM, 0.2)
        torch.manual_seed(5)
        second: nn.Module = build(DIM, 0.2)
        for name, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name])
