"""What is particular to SASRec, GRU4Rec and the layers around a mixer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from pfsr_core.models.encoders.base import SequenceEncoder, State
from pfsr_core.models.encoders.gru4rec import GRULayer, gru4rec_encoder
from pfsr_core.models.encoders.layers import FeedForward, MixerLayer, Stack, of_prefix, with_prefix
from pfsr_core.models.encoders.mamba1 import mamba1_encoder
from pfsr_core.models.encoders.sasrec import AttentionBlock, attention_kernel, sasrec_encoder
from pfsr_core.models.ops.dropout import Noise


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


class Doubling(SequenceEncoder):
    """The plainest mixer, so that what stands around it can be seen. It counts its steps."""

    def forward(self, x: Tensor, lengths: None = None, state: None = None) -> Tensor:
        return 2 * x

    def final_state(self, x: Tensor, state: State) -> State:
        return {"steps": state["steps"] + x.shape[1]}

    def initial_state(self, batch_size: int) -> State:
        return {"steps": torch.zeros(batch_size)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return 2 * x, {"steps": state["steps"] + 1}


class TestLayers:
    @pytest.mark.parametrize("residual", [False, True])
    def test_mixer_layer(self, residual: bool) -> None:
        layer = MixerLayer(Doubling(), 6, 0.0, residual)
        x = torch.randn(2, 3, 6)
        expected = layer.feed_forward(layer.norm(3 * x if residual else 2 * x))
        assert torch.equal(layer(x), expected)

    def test_feed_forward(self) -> None:
        layer = FeedForward(6, 0.5).eval()
        x = torch.randn(2, 3, 6)
        hidden = nn.functional.gelu(x @ layer.expand.weight.T + layer.expand.bias)
        assert hidden.shape == (2, 3, 24)
        expected = layer.norm(hidden @ layer.contract.weight.T + layer.contract.bias + x)
        torch.testing.assert_close(layer(x), expected)

    def test_stack_keeps_the_states_of_its_layers_apart(self) -> None:
        stack = Stack([MixerLayer(Doubling(), 4, 0.0, True), Doubling()])
        _, state = stack.step(torch.randn(3, 4), stack.initial_state(3))
        assert state.keys() == {"0.steps", "1.steps"}
        assert all(torch.equal(tensor, torch.ones(3)) for tensor in state.values())

    def test_prefixes_of_eleven_layers(self) -> None:
        """Layer 1 must not be given what belongs to layer 10."""
        states = {i: {"a": torch.tensor(float(i)), "0.b": torch.tensor(0.0)} for i in range(11)}
        merged = {k: v for i, state in states.items() for k, v in with_prefix(state, i).items()}
        assert all(of_prefix(merged, i) == state for i, state in states.items())

    @pytest.mark.parametrize("num_layers", [1, 2])
    def test_residual_only_with_several_layers(self, num_layers: int) -> None:
        encoder = mamba1_encoder(
            8, num_layers, state_dim=4, conv_width=4, expand=2, dropout_rate=0.1
        )
        assert [layer.residual for layer in encoder.layers] == [num_layers > 1] * num_layers


class TestSASRec:
    def test_block_by_hand(self) -> None:
        block = AttentionBlock(6, 1, 4, 0.0).double()
        x = torch.randn(1, 4, 6, dtype=torch.float64)
        q = block.query_norm(x)
        scores = block.query(q) @ block.key(x).mT / 6**0.5
        future = torch.ones(4, 4).triu(1).bool()
        weights = softmax(scores.masked_fill(future, float("-inf")), dim=-1)
        f = block.feed_forward_norm(q + block.output(weights @ block.value(x)))
        expected = f + block.outer(block.inner(f).relu())
        close(block(x), expected)

    def test_noise_that_drops_nothing_changes_nothing(self) -> None:
        """With dropout attention is composed of its parts; the fused one must be the same map."""
        encoder = sasrec_encoder(8, 2, 2, 9, 2**-16).double()
        keep_all = torch.full((2, 7, encoder.noise_width), 2**15 - 1, dtype=torch.int16)
        x = torch.randn(2, 7, 8, dtype=torch.float64)
        torch.testing.assert_close(encoder(x, Noise(keep_all)), encoder(x), rtol=1e-3, atol=1e-3)

    def test_order_matters(self) -> None:
        """Without positions the last output would not tell apart two orders of what is before."""
        encoder = sasrec_encoder(8, 1, 1, 5, 0.0).double()
        x = torch.randn(1, 4, 8, dtype=torch.float64)
        swapped = x[:, [1, 0, 2, 3]]
        assert not torch.allclose(encoder(x)[:, -1], encoder(swapped)[:, -1], atol=1e-8)

    def test_too_long_a_history(self) -> None:
        encoder = sasrec_encoder(8, 1, 2, 5, 0.0)
        with pytest.raises(ValueError, match=r"max_length=5 .* got 6: keep the latest 5"):
            encoder(torch.randn(1, 6, 8))

    def test_too_many_steps(self) -> None:
        encoder = sasrec_encoder(8, 1, 2, 3, 0.0)
        state = encoder.initial_state(2)
        for _ in range(3):
            _, state = encoder.step(torch.randn(2, 8), state)
        with pytest.raises(ValueError, match=r"max_length=3 .* got 4.*larger max_length"):
            encoder.step(torch.randn(2, 8), state)

    def test_heads_must_divide(self) -> None:
        with pytest.raises(ValueError, match="num_heads=3 does not divide embedding_dim=8"):
            sasrec_encoder(8, 1, 3, 5, 0.0)

    def test_users_at_different_positions(self) -> None:
        """One batch may hold the states of users with histories of different lengths."""
        encoder = sasrec_encoder(8, 2, 2, 6, 0.0).double()
        x = torch.randn(2, 4, 8, dtype=torch.float64)
        state = encoder.initial_state(2)
        for t in range(3):
            _, after = encoder.step(x[:, t], state)
            longer = torch.tensor([True, t < 1])  # the second user stops after one interaction
            state = {
                k: torch.where(longer.view(-1, *[1] * (v.dim() - 1)), v, state[k])
                for k, v in after.items()
            }
        output, _ = encoder.step(torch.stack([x[0, 3], x[1, 1]]), state)
        close(output[0], encoder(x)[0, 3])
        close(output[1], encoder(x)[1, 1])

    def test_composed_kernel_only_inside_transforms(self) -> None:
        enabled: list[bool] = []

        def probe(x: Tensor) -> Tensor:
            with attention_kernel():
                enabled.append(torch.backends.cuda.flash_sdp_enabled())
            return x

        probe(torch.ones(1))
        torch.func.vmap(probe)(torch.ones(1))
        assert enabled == [True, False]


class TestGRU4Rec:
    def test_equals_torch(self) -> None:
        """Same names, same plan, same numbers as a one-layer ``nn.GRU``."""
        ours, theirs = GRULayer(5, 7).double(), nn.GRU(5, 7, batch_first=True).double()
        theirs.load_state_dict(ours.state_dict(), strict=True)
        x = torch.randn(2, 9, 5, dtype=torch.float64)
        close(ours(x), theirs(x)[0])
        theirs(x)[0].square().sum().backward()
        ours(x).square().sum().backward()
        for name, parameter in ours.named_parameters():
            assert parameter.grad is not None
            close(parameter.grad, theirs.get_parameter(name).grad)

    def test_hidden_width_of_its_own(self) -> None:
        encoder = gru4rec_encoder(8, 2, 20, 0.1)
        assert encoder(torch.randn(2, 3, 8)).shape == (2, 3, 8)
        assert encoder.initial_state(2)["1.hidden"].shape == (2, 20)
