"""HSTU and SASRec against RecTools: same weights, same outputs (golden/make_rectools.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pfsr_core.models.encoders.hstu import TIME_BUCKETS, HSTUBlock, hstu_encoder
from pfsr_core.models.encoders.sasrec import AttentionBlock, sasrec_encoder

GOLDEN = Path(__file__).parent / "golden" / "rectools.safetensors"
HEADS, BLOCKS = 2, 2


def golden_case(case: str) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN).items()
    return {k.removeprefix(f"{case}/"): v for k, v in tensors if k.startswith(f"{case}/")}


def put(target: Tensor, source: Tensor) -> None:
    assert target.shape == source.shape
    with torch.no_grad():
        target.copy_(source)


def load(module: nn.Linear | nn.LayerNorm, weights: dict[str, Tensor], name: str) -> None:
    put(module.weight, weights[f"{name}.weight"])
    put(module.bias, weights[f"{name}.bias"])


def load_hstu_block(block: HSTUBlock, weights: dict[str, Tensor], prefix: str) -> None:
    """Theirs: a bias for every i - j from 1 - L to L - 1, the last half unused; transposed W."""
    length = len(block.position_bias)
    put(block.uvqk, weights[f"{prefix}.uvqk_proj"].T)
    put(block.position_bias, weights[f"{prefix}.rel_attn.pos_weights"][:length].flip(0))
    put(block.time_bias, weights[f"{prefix}.rel_attn.time_weights"][:TIME_BUCKETS])
    load(block.output, weights, f"{prefix}.output_mlp")


def load_sasrec_block(block: AttentionBlock, weights: dict[str, Tensor], prefix: str) -> None:
    names = (block.query, block.key, block.value)
    joint = [weights[f"{prefix}.multi_head_attn.in_proj_{part}"] for part in ("weight", "bias")]
    parts = zip(names, *(tensor.chunk(3) for tensor in joint), strict=True)
    for module, weight, bias in parts:
        put(module.weight, weight)
        put(module.bias, bias)
    load(block.output, weights, f"{prefix}.multi_head_attn.out_proj")
    load(block.inner, weights, f"{prefix}.feed_forward.ff_linear_1")
    load(block.outer, weights, f"{prefix}.feed_forward.ff_linear_2")
    load(block.query_norm, weights, f"{prefix}.q_layer_norm")
    load(block.feed_forward_norm, weights, f"{prefix}.ff_layer_norm")


@pytest.mark.parametrize("row", range(3))
def test_hstu(row: int) -> None:
    """Histories of 9, 6 and 1; RecTools pads on the left and divides by 9 as well."""
    golden = golden_case("hstu")
    _, length, dim = golden["input"].shape
    encoder = hstu_encoder(dim, BLOCKS, HEADS, length, 0.1).double()
    for index, block in enumerate(encoder.blocks):
        assert isinstance(block, HSTUBlock)
        load_hstu_block(block, golden, f"weight/stu_blocks.{index}")
    first = length - int(golden["lengths"][row])
    x, times = golden["input"][None, row, first:], golden["times"][None, row, first:]
    expected = encoder.norm(golden["output"][None, row, first:])
    torch.testing.assert_close(encoder(x, item_times=times), expected, rtol=1e-10, atol=1e-10)


def test_sasrec() -> None:
    golden = golden_case("sasrec")
    _, length, dim = golden["input"].shape
    encoder = sasrec_encoder(dim, BLOCKS, HEADS, length, 0.1).double()
    put(encoder.positions, torch.zeros(length, dim))
    for index, block in enumerate(encoder.blocks):
        assert isinstance(block, AttentionBlock)
        load_sasrec_block(block, golden, f"weight/transformer_blocks.{index}")
    load(encoder.norm, golden, "weight/last_layernorm")
    output = encoder(golden["input"])
    torch.testing.assert_close(output, golden["output"], rtol=1e-10, atol=1e-10)
