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

GRADIENTS_AT_ONCE = 2**23  # numbers of per-sample gradients held at once: 32 MB
SAMPLES_AT_ONCE = 16  # of a client at once, at most

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
            diagonal_fisher(log_probability, client.encoder, client.constants, client.samples)
            for client in clients
        ]
    results_by_client: dict[int, Params] = {}
    for group_indices in _groups(clients):
        group_fishers = _fishers(log_probability, [clients[i] for i in group_indices])
        results_by_client |= zip(group_indices, group_fishers, strict=True)
    return [results_by_client[client_index] for client_index in range(len(clients))]


def _groups(clients: Sequence[Sampled]) -> Iterator[list[int]]:
    """Clients with similar numbers and lengths of samples, as many as memory allows."""
    if not clients:
        return
    encoder_size = sum(tensor.numel() for tensor in clients[0].encoder.values())
    group_size = max(1, GRADIENTS_AT_ONCE // (SAMPLES_AT_ONCE * encoder_size))
    sample_lengths = [client.samples.lengths for client in clients]
    sort_keys = [(len(length), int(length.sum())) for length in sample_lengths]
    client_order = sorted(range(len(clients)), key=lambda i: sort_keys[i])
    for group_start in range(0, len(client_order), group_size):
        yield client_order[group_start : group_start + group_size]


def _fishers(log_probability: LogProbability, clients: Sequence[Sampled]) -> list[Params]:
    encoders = stack_params([client.encoder for client in clients])
    constants = stack_params([client.private for client in clients])
    constants |= stack_rows([client.rows for client in clients])
    constants[ROWS] = padding_logit_mask([client.items for client in clients])
    stacked_samples, sample_weights = _fill([client.samples for client in clients])

    def weighted(params: Params, constants: Params, weight: Tensor, *sample: Tensor) -> Tensor:
        return weight * log_probability(params, constants, *sample)

    square_sums = {tensor_name: torch.zeros_like(stack) for tensor_name, stack in encoders.items()}
    for slice_start in range(0, sample_weights.shape[1], SAMPLES_AT_ONCE):
        sample_slice = slice(slice_start, slice_start + SAMPLES_AT_ONCE)
        sample = (sample_weights[:, sample_slice], *stacked_samples.pick(sample_slice))
        per_sample = vmap(grad(weighted), in_dims=(None, None, *[0] * len(sample)))
        sample_gradients = vmap(per_sample)(encoders, constants, *sample)
        for tensor_name, sample_gradient in sample_gradients.items():
            square_sums[tensor_name] += sample_gradient.detach().square_().sum(1)
    sample_counts = sample_weights.sum(1).clamp(min=1).tolist()
    return [
        {tensor_name: stack[k] / sample_count for tensor_name, stack in square_sums.items()}
        for k, sample_count in enumerate(sample_counts)
    ]


def _fill(samples: Sequence[Samples]) -> tuple[Samples, Tensor]:
    """Of K clients, sorted by length, with as many as the most have; and weights (K, S).

    Samples that a client lacks have length 1, the first row as prefix and target, and weight 0.
    """
    max_samples = max(1, *(len(client_samples.lengths) for client_samples in samples))
    max_length = max(client_samples.prefixes.shape[1] for client_samples in samples)
    prefixes = torch.zeros(len(samples), max_samples, max_length, dtype=torch.long)
    prefixes[:, :, 0] = 1
    lengths, targets = torch.ones(2, len(samples), max_samples, dtype=torch.long)
    sample_weights = torch.zeros(len(samples), max_samples)
    times = None if samples[0].times is None else torch.zeros_like(prefixes)
    for k, (prefix, length, target, time) in enumerate(samples):
        length_order = torch.argsort(length, stable=True)
        filled_slots = slice(
            max_samples - len(length_order), max_samples
        )  # the longest last, as those of the other clients
        prefixes[k, filled_slots] = 0
        prefixes[k, filled_slots, : prefix.shape[1]] = prefix[length_order]
        lengths[k, filled_slots] = length[length_order]
        targets[k, filled_slots] = target[length_order]
        sample_weights[k, filled_slots] = 1.0
        if times is not None and time is not None:
            times[k, filled_slots, : time.shape[1]] = time[length_order]
    return Samples(prefixes, lengths, targets, times), sample_weights
