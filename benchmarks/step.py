"""What a training step of the default model is made of: the logits' share, and ways to cut it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import Measurement, Shape, Work, compare, compare_memory
from pfsr_core.assembly.settings import Settings
from pfsr_core.assembly.task import make_model
from pfsr_core.models.ops.dropout import draw_bits
from pfsr_core.training.losses import next_item_cross_entropy, sampled_cross_entropy

NAME = "encoder"
CASES = ((16, 1000), (64, 1682))  # windows a batch, items: a client's, and the whole of ML-100K
LENGTH, SAMPLED = 50, 256

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def measure() -> Iterator[Measurement]:
    """Steps with all logits against plain cross-entropy, against none, and with sampled ones."""
    for batch, items in CASES:
        case = f"step of the default model, {batch} x {LENGTH}, {items} items"
        chunks, whole = step(batch, items, in_chunks), step(batch, items, at_once)
        yield compare(NAME, f"{case}, logits in chunks", chunks, "logits at once", whole)
        none = step(batch, items, without_logits)
        yield compare(NAME, f"{case}, the rest's share", chunks, "without logits", none)
        sampled = step(batch, items, partial(some, torch.randperm(items)[:SAMPLED] + 1))
        yield compare(NAME, f"{case}, {SAMPLED} items sampled", sampled, "all items", chunks)
    largest = (CASES[-1][0] * LENGTH, CASES[-1][1])
    case = f"cross-entropy of {largest[0]} positions and {largest[1]} items, memory"
    yield compare_memory(NAME, case, loss_in_chunks, "logits at once", loss_at_once, largest)


def in_chunks(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """The product's loss."""
    return next_item_cross_entropy(hidden, table, targets)


def at_once(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """The same with PyTorch's cross-entropy over (positions, items) logits."""
    real = targets > 0
    return F.cross_entropy(hidden[real] @ table[1:].T, targets[real] - 1)


def some(negatives: Tensor, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """The sampled loss."""
    return sampled_cross_entropy(hidden, table, targets, negatives)


def without_logits(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """No loss at all, but a gradient for everything: what the rest of a step costs."""
    real = targets > 0
    return (hidden[real] * table[targets[real]]).mean()


def step(batch: int, items: int, loss: Loss) -> Work:
    """Forward and backward of the default model with dropout, all windows full."""
    settings = Settings()
    model = make_model(settings, items)
    leaves = list(model.parameters())
    codes = torch.randint(1, items + 1, (batch, LENGTH + 1))
    noise = np.random.Generator(np.random.SFC64(0))

    def work() -> None:
        bits = draw_bits((batch, LENGTH, model.noise_width), noise)
        hidden = model(codes[:, :-1], bits)
        torch.autograd.grad(loss(hidden, model.items.weight, codes[:, 1:]), leaves)

    return work


def loss_in_chunks(shape: Shape) -> Work:
    """The loss alone, (positions, items)."""
    return _loss_alone(shape, in_chunks)


def loss_at_once(shape: Shape) -> Work:
    """The loss alone, (positions, items)."""
    return _loss_alone(shape, at_once)


def _loss_alone(shape: Shape, loss: Loss) -> Work:
    positions, items = shape
    dim = Settings().model.embedding_dim
    hidden = torch.randn(1, positions, dim, requires_grad=True)
    table = torch.randn(items + 1, dim, requires_grad=True)
    targets = torch.randint(1, items + 1, (1, positions))
    return lambda: torch.autograd.grad(loss(hidden, table, targets), [hidden, table])
