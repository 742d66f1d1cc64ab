"""What is particular to HSTU: its equations, its constant divisor, and times."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from pfsr_core.models.encoders.hstu import HSTU, causal_plan, hstu_encoder, time_buckets
from pfsr_core.models.ops.dropout import Noise, draw_bits

DIM, HEADS, MAX_LENGTH = 8, 2, 11
DAY = 86_400


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture
def encoder() -> HSTU:
    torch.manual_seed(4)
    encoder = hstu_encoder(DIM, 2, HEADS, MAX_LENGTH, 0.5).double()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder


def histories(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, dtype=torch.float64)


def times(*shape: int) -> Tensor:
    """Seconds of interactions: gaps from none to a few years."""
    gaps = (10 ** (8 * torch.rand(*shape, dtype=torch.float64))).long() - 1
    return 10**9 + gaps.cumsum(-1)


def norm(x: list[float], eps: float) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return [(value - mean) / math.sqrt(variance + eps) for value in x]


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def block_in_plain_python(block: torch.nn.Module, x: Tensor, when: list[int]) -> Tensor:
    """One block on one history (L, D), number by number, as the module's docstring writes it."""
    weight, position_bias, time_bias, out, out_bias = (
        block.get_parameter(name).tolist()
        for name in ("uvqk", "position_bias", "time_bias", "output.weight", "output.bias")
    )
    length, size = len(x), DIM // HEADS
    joint = [
        [silu(sum(w * n for w, n in zip(row, norm(one, 1e-6), strict=True))) for row in weight]
        for one in x.tolist()
    ]
    u, v, q, k = ([one[i * DIM : (i + 1) * DIM] for one in joint] for i in range(4))
    rows = []
    for i in range(length):
        attended = [0.0] * DIM
        for head in range(HEADS):
            columns = range(head * size, (head + 1) * size)
            for j in range(i + 1):
                bucket = int(math.log(max(1, when[i] - when[j])) / 0.301)
                score = sum(q[i][c] * k[j][c] for c in columns)
                score += position_bias[i - j] + time_bias[bucket]
                for c in columns:
                    attended[c] += silu(score) / MAX_LENGTH * v[j][c]
        gated = [a * b for a, b in zip(u[i], norm(attended, 1e-6), strict=True)]
        added = [
            sum(w * g for w, g in zip(row, gated, strict=True)) + bias
            for row, bias in zip(out, out_bias, strict=True)
        ]
        rows.append([a + b for a, b in zip(x[i].tolist(), added, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


def test_equals_the_equations(encoder: HSTU) -> None:
    """The divisor of a history of 7 is 11, the length that the encoder was built for."""
    x, when = histories(7), times(7)
    expected = x
    for block in encoder.blocks:
        expected = block_in_plain_python(block, expected, when.tolist())
    close(encoder(x[None], item_times=when[None])[0], encoder.norm(expected))


def test_without_times_every_gap_is_zero(encoder: HSTU) -> None:
    x = histories(2, 6)
    close(encoder(x), encoder(x, item_times=torch.full((2, 6), 10**9)))
    assert not torch.allclose(encoder(x), encoder(x, item_times=times(2, 6)), atol=1e-3)


def test_item_by_item_with_times_equals_the_whole(encoder: HSTU) -> None:
    x, when = histories(3, MAX_LENGTH), times(3, MAX_LENGTH)
    state, outputs = encoder.initial_state(3), []
    for t in range(MAX_LENGTH):
        output, state = encoder.step(x[:, t], state, when[:, t])
        outputs.append(output)
    close(torch.stack(outputs, dim=1), encoder(x, item_times=when))


@pytest.mark.parametrize("changed", [1, 5])
def test_a_later_time_leaves_earlier_outputs(encoder: HSTU, changed: int) -> None:
    """The time of the item to predict is no input of its prediction."""
    x, when = histories(2, 8), times(2, 8)
    later = when.clone()
    later[:, changed:] += 400 * DAY
    before, after = encoder(x, item_times=when), encoder(x, item_times=later)
    close(after[:, :changed], before[:, :changed])
    assert not torch.allclose(after[:, changed], before[:, changed])


def test_only_differences_of_times_matter(encoder: HSTU) -> None:
    x, when = histories(2, 8), times(2, 8)
    close(encoder(x, item_times=when + 10**9), encoder(x, item_times=when))


def test_padding_has_any_time(encoder: HSTU) -> None:
    x, when = histories(2, 6), times(2, 6)
    padded = torch.cat([x, torch.zeros(2, 3, DIM, dtype=x.dtype)], dim=1)
    longer = torch.cat([when, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    close(encoder(padded, item_times=longer)[:, :6], encoder(x, item_times=when))


def test_clients_of_their_own_with_times(encoder: HSTU) -> None:
    """Mapped over clients and differentiated, as the batched engine does, with dropout."""
    x, when, weights = histories(2, 3, 5), times(2, 3, 5), histories(3, 5)
    bits = draw_bits((2, 3, 5, encoder.noise_width), np.random.default_rng(0))
    parameters = {name: p.detach() for name, p in encoder.named_parameters()}
    stacked = {name: torch.stack([p, 1.1 * p]) for name, p in parameters.items()}

    def loss(values: dict[str, Tensor], x: Tensor, bits: Tensor, when: Tensor) -> Tensor:
        hidden: Tensor = functional_call(encoder, values, (x, Noise(bits), when))
        return (hidden * weights).sum()

    batched = vmap(grad(loss))(stacked, x, bits, when)
    for client in range(2):
        values = {name: tensor[client] for name, tensor in stacked.items()}
        for name, gradient in grad(loss)(values, x[client], bits[client], when[client]).items():
            close(batched[name][client], gradient)


def test_buckets() -> None:
    gaps = torch.tensor([0, 1, 2, 3, -3, 60, DAY, 30 * 365 * DAY, 2**62])
    assert time_buckets(gaps).tolist() == [0, 0, 2, 3, 3, 13, 37, 68, 127]


def test_order_matters(encoder: HSTU) -> None:
    """Without the bias of positions the last output would not tell two orders apart."""
    x = histories(1, 6)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(encoder(x)[:, -1], encoder(swapped)[:, -1], atol=1e-6)
    with torch.no_grad():
        encoder.get_parameter("blocks.0.position_bias").zero_()
    block = encoder.blocks[0]
    view = causal_plan(x, None)
    close(block(x, view)[:, -1], block(swapped, view)[:, -1])


def test_too_long_a_history(encoder: HSTU) -> None:
    with pytest.raises(ValueError, match=r"HSTU .*max_length=11 .* got 12: keep the latest 11"):
        encoder(histories(1, 12))
    state = {**encoder.initial_state(1), "position": torch.tensor([MAX_LENGTH])}
    with pytest.raises(ValueError, match="got 12"):
        encoder.step(histories(1), state)
