"""Fisher information of many clients as one program; see :mod:`pfsr_core.training.batched`.

Per-sample gradients are mapped twice: over clients, each with parameters of its own, and over the
samples of a client. What a client has less of than another, samples or rows of its item table, is
filled up and weighs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from pfsr_core.params import Params
from pfsr_core.training.fisher import LogProbability, Samples, diagonal_fisher
from pfsr_core.training.stacking import padding_logit_mask, stack_params, stack_rows

GRADIENTS = 2**23  # numbers of per-sample gradients held at once: 32 MB
SAMPLES = 16  # of a client at once, at most

ROWS = "rows"  # 0 for the rows of a client's item table, -inf for what fills it up: (V',)


@dataclass(frozen=True)
class Sampled:
    """A client's encoder, what it is evaluated with, and its samples.

    ``private``: all other names of its model. ``items``: rows of its item table, the padding row
    included; ``rows``: which items the rows of its item tensors are of.
    The log-probability is the same function for all; the constants are ``private`` and ``rows``.
    """

    encoder: Params
    private: Params
    samples: Samples
    items: int
    rows: Params

    @property
    def constants(self) -> Params:
        """What the log-probability depends on besides the encoder."""
        return {**self.private, **self.rows}


def client_fishers(
    log_probability: LogProbability, clients: Sequence[Sampled], engine: str
) -> list[Params]:
    """Diagonal Fisher of every client's encoder, in the order given."""
    if engine == "loop":
        return [
            diagonal_fisher(log_probability, one.encoder, one.constants, one.samples)
            for one in clients
        ]
    results: dict[int, Params] = {}
    for group in _groups(clients):
        found = _fishers(log_probability, [clients[i] for i in group])
        results |= zip(group, found, strict=True)
    return [results[index] for index in range(len(clients))]


def _groups(clients: Sequence[Sampled]) -> Iterator[list[int]]:
    """Clients with similar numbers and lengths of samples, as many as memory allows."""
    if not clients:
        return
    size = sum(tensor.numel() for tensor in clients[0].encoder.values())
    together = max(1, GRADIENTS // (SAMPLES * size))
    lengths = [one.samples.lengths for one in clients]
    key = [(len(length), int(length.sum())) for length in lengths]
    order = sorted(range(len(clients)), key=lambda i: key[i])
    for start in range(0, len(order), together):
        yield order[start : start + together]


def _fishers(log_probability: LogProbability, clients: Sequence[Sampled]) -> list[Params]:
    encoders = stack_params([one.encoder for one in clients])
    constants = stack_params([one.private for one in clients])
    constants |= stack_rows([one.rows for one in clients])
    constants[ROWS] = padding_logit_mask([one.items for one in clients])
    samples, weights = _fill([one.samples for one in clients])

    def weighted(params: Params, constants: Params, weight: Tensor, *sample: Tensor) -> Tensor:
        return weight * log_probability(params, constants, *sample)

    total = {name: torch.zeros_like(stack) for name, stack in encoders.items()}
    for start in range(0, weights.shape[1], SAMPLES):
        now = slice(start, start + SAMPLES)
        sample = (weights[:, now], *samples.pick(now))
        per_sample = vmap(grad(weighted), in_dims=(None, None, *[0] * len(sample)))
        grads = vmap(per_sample)(encoders, constants, *sample)
        for name, gradient in grads.items():
            total[name] += gradient.detach().square_().sum(1)
    counts = weights.sum(1).clamp(min=1).tolist()
    return [
        {name: stack[k] / count for name, stack in total.items()} for k, count in enumerate(counts)
    ]


def _fill(samples: Sequence[Samples]) -> tuple[Samples, Tensor]:
    """Of K clients, sorted by length, with as many as the most have; and weights (K, S).

    Samples that a client lacks have length 1, the first row as prefix and target, and weight 0.
    """
    most = max(1, *(len(one.lengths) for one in samples))
    width = max(one.prefixes.shape[1] for one in samples)
    prefixes = torch.zeros(len(samples), most, width, dtype=torch.long)
    prefixes[:, :, 0] = 1
    lengths, targets = torch.ones(2, len(samples), most, dtype=torch.long)
    weights = torch.zeros(len(samples), most)
    times = None if samples[0].times is None else torch.zeros_like(prefixes)
    for k, (prefix, length, target, time) in enumerate(samples):
        order = torch.argsort(length, stable=True)
        rows = slice(most - len(order), most)  # the longest last, as those of the other clients
        prefixes[k, rows] = 0
        prefixes[k, rows, : prefix.shape[1]] = prefix[order]
        lengths[k, rows], targets[k, rows], weights[k, rows] = length[order], target[order], 1.0
        if times is not None and time is not None:
            times[k, rows, : time.shape[1]] = time[order]
    return Samples(prefixes, lengths, targets, times), weights
