"""What an answer from tokens' memory could cost: ``python -m tests.benchmarks.serving_floor``.

The answer as it is served, the same one written out as bare functions with keys and values in one
product and the mask made beforehand, and one that has the keys and values of the other recent items
too, so that a single item is read. Each beside reading all of 2,000 interactions, in milliseconds.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, relu, scaled_dot_product_attention

from benchmarks.history import ITEMS, NAME, RECENT, Server, per_call, repeat, server_of
from benchmarks.timing import compare
from pfsr_core.models.encoders.attention_masks import plan_after_tokens
from pfsr_core.models.encoders.layers import of_prefix
from pfsr_core.models.encoders.sasrec import AttentionBlock, SASRec

LENGTH = 2000


class Written(NamedTuple):
    """A block with keys and values in one product, and what it has seen before."""

    block: AttentionBlock
    weight: Tensor
    bias: Tensor
    keys: Tensor
    values: Tensor

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = linear(x, self.weight, self.bias).unflatten(-1, (2, self.block.num_heads, -1))
        keys, values = both.permute(2, 0, 3, 1, 4)
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def __call__(self, x: Tensor, mask: Tensor | None, count: int) -> Tensor:
        block, (keys, values) = self.block, self.seen(x)
        q = layer_norm(x[:, -count:], x.shape[-1:], *_norm(block.query_norm))
        queries = linear(q, block.query.weight, block.query.bias)
        heads = queries.unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        mixed = scaled_dot_product_attention(heads, keys, values, attn_mask=mask)
        joined = linear(mixed.transpose(1, 2).flatten(2), block.output.weight, block.output.bias)
        f = layer_norm(q + joined, x.shape[-1:], *_norm(block.feed_forward_norm))
        hidden = relu(linear(f, block.inner.weight, block.inner.bias))
        return f + linear(hidden, block.outer.weight, block.outer.bias)


def _norm(norm: torch.nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


class Bare:
    """The answers of a server, written out."""

    def __init__(self, server: Server) -> None:
        self.model, self.items = server.model, server.items
        assert isinstance(server.model.encoder, SASRec)
        self.encoder = server.model.encoder
        cut, tokens = server.memory["covered"], server.memory["0.keys"].shape[2]
        self.mask = plan_after_tokens(cut, RECENT, tokens).visible[:, None]
        self.positions = self.encoder.positions[int(cut) : int(cut) + RECENT]
        self.blocks = [
            Written(
                block,
                torch.cat([block.key.weight, block.value.weight]),
                torch.cat([block.key.bias, block.value.bias]),
                **of_prefix(server.memory, index),
            )
            for index, block in enumerate(self.encoder.blocks)
        ]
        self.kept = []  # the same with the keys and values of all recent items but the last
        x = self.model.embed(self.items) + self.positions
        for written in self.blocks:
            keys, values = (part[:, :, :-1] for part in written.seen(x))
            self.kept.append(written._replace(keys=keys, values=values))
            x = written(x, self.mask, RECENT)

    def written_out(self) -> Tensor:
        x = self.model.embed(self.items) + self.positions
        for written in self.blocks[:-1]:
            x = written(x, self.mask, RECENT)
        return self._scores(self.blocks[-1](x, None, 1))

    def one_item(self) -> Tensor:
        x = self.model.embed(self.items[:, -1:]) + self.positions[-1:]
        for written in self.kept:
            x = written(x, None, 1)
        return self._scores(x)

    def _scores(self, x: Tensor) -> Tensor:
        last = layer_norm(x[:, -1], x.shape[-1:], *_norm(self.encoder.norm))
        return last @ self.model.items.weight[1:].T


def main() -> int:
    torch.manual_seed(0)
    with torch.inference_mode():
        items = torch.randint(1, ITEMS + 1, (1, LENGTH))
        server = server_of("tokens", items, RECENT)
        bare, expected = Bare(server), server.serve()
        ways = {
            "as served": server.serve,
            "written out": bare.written_out,
            "one item, keys of the recent ones kept": bare.one_item,
        }
        for name, work in ways.items():
            torch.testing.assert_close(work(), expected, rtol=1e-4, atol=1e-4)
            ours, peer = partial(repeat, work), partial(server.read, items)
            found = per_call(compare(NAME, name, ours, "reading all", peer))
            sys.stdout.write(
                f"{name}: {found.ours_ms:.3f} ms, {found.peer} {found.peer_ms:.1f} ms, "
                f"{found.ratio:.0f} times\n"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
