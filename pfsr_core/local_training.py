"""Training on one client: windows, batches, one optimiser loop that every algorithm calls."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.evaluation.client import Scorer
from pfsr_core.fisher import Masks
from pfsr_core.losses import next_item_cross_entropy, sampled_cross_entropy
from pfsr_core.models.dropout import draw_bits
from pfsr_core.models.item_tables import row_numbers
from pfsr_core.models.next_item import ITEMS, Apply, pad_right
from pfsr_core.params import Params, Partition, clone

ExtraLoss = Callable[[Params], Tensor]

POOL = 16  # batches whose windows are sorted by length together


@dataclass(frozen=True)
class Task:
    """A model as an algorithm sees it: functions of parameters, and who owns which of them.

    ``candidates(data)``: sorted item codes that a client ranks (V',), whose rows follow the padding
    row in its item table (V' + 1, D). With private item tables these are the items its own users
    touched. ``unseen_rows(data, codes)`` (n, D): what other items, which a history may hold, would
    start with.
    ``noise_width``: random numbers that dropout takes at every position; 0 without dropout.
    """

    apply: Apply
    noise_width: int
    partition: Partition
    init_shared: Callable[[], Params]
    init_private: Callable[[ClientDataset], Params]
    candidates: Callable[[ClientDataset], Tensor]
    unseen_rows: Callable[[ClientDataset, ItemArray], Tensor]


@dataclass(frozen=True)
class LocalTraining:
    """How a client trains. ``local_epochs`` passes a round over its windows.

    ``item_learning_rate`` is the step of the item table: small data wants it smaller.
    ``negatives``: items drawn for each batch to stand for the catalogue in the loss; 0 takes all.
    """

    learning_rate: float
    local_epochs: int
    batch_size: int
    max_length: int
    seed: int
    item_learning_rate: float
    decay: float = 1.0
    negatives: int = 0

    def in_round(self, round_: int) -> LocalTraining:
        """The step sizes of the 1-based ``round_``: times ``decay`` for every round before it."""
        scale = self.decay ** (round_ - 1)
        return replace(
            self,
            learning_rate=self.learning_rate * scale,
            item_learning_rate=self.item_learning_rate * scale,
        )


@dataclass(frozen=True)
class LossSum:
    """Sum of batch losses times their targets, and the number of targets."""

    total: float = 0.0
    count: float = 0.0

    def add(self, mean: float, count: float) -> LossSum:
        return LossSum(self.total + mean * count, self.count + count)


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for one named stream of randomness, e.g. (seed, "client", id, round)."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def training_windows(data: ClientDataset, max_length: int) -> Tensor:
    """All training histories cut into windows of at most ``max_length + 1`` items: (W, L + 1).

    Windows overlap by one item, so that every item after a user's first is a target exactly once.
    They are cut from the end: the last window of a long history is always full.
    """
    pieces = [piece for user in data.users for piece in _cut(user.train, max_length)]
    if not pieces:
        return torch.zeros(0, 2, dtype=torch.long)
    return pad_right(pieces, max_length + 1)[0]


def _cut(history: ItemArray, max_length: int) -> Iterator[ItemArray]:
    for end in range(len(history), 1, -max_length):
        yield history[max(0, end - max_length - 1) : end]


def batches(windows: Tensor, batch_size: int, generator: torch.Generator) -> Iterable[Tensor]:
    """One shuffled pass over windows (W, L + 1), each batch cut to its longest window.

    Windows of similar length share a batch: within every :data:`POOL` batches of the shuffled
    windows they are sorted by length, and the batches come in random order. What is left of
    padding is small, and no model needs to know of it.
    """
    lengths = (windows > 0).sum(1)
    pools = torch.randperm(len(windows), generator=generator).split(POOL * batch_size)
    sorted_pools = (pool[torch.argsort(lengths[pool], stable=True)] for pool in pools)
    together = [rows for pool in sorted_pools for rows in pool.split(batch_size)]
    for index in torch.randperm(len(together), generator=generator).tolist():
        rows = together[index]
        yield windows[rows, : max(2, int(lengths[rows].max()))]


def train(
    task: Task,
    config: LocalTraining,
    params: Params,
    data: ClientDataset,
    *,
    stream: int,
    extra_loss: ExtraLoss | None = None,
    frozen: Masks | None = None,
) -> tuple[Params, LossSum]:
    """``local_epochs`` passes with a fresh Adam; returns new parameters, writes none of its inputs.

    ``extra_loss(params)`` is added to the cross-entropy. ``frozen`` marks coordinates that must
    not move; tensors it does not name are free. ``stream`` seeds batches and dropout.
    """
    windows = row_numbers(training_windows(data, config.max_length), task.candidates(data))
    params = clone(params)
    if not len(windows):
        return params, LossSum()
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
    optimizer = _fresh_adam(leaves, config)
    generator, noise = torch.Generator().manual_seed(stream), noise_generator(stream)
    losses = LossSum()
    for _ in range(config.local_epochs):
        for batch in batches(windows, config.batch_size, generator):
            inputs, targets = batch[:, :-1], batch[:, 1:]
            hidden = task.apply(leaves, inputs, draw_noise(task, inputs.shape, noise))
            loss = _loss(hidden, leaves[ITEMS], targets, config.negatives, generator)
            losses = losses.add(float(loss.detach()), float((targets > 0).sum()))
            if extra_loss is not None:
                loss = loss + extra_loss(leaves)
            optimizer.zero_grad()
            loss.backward()
            _freeze(leaves, frozen)
            optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}, losses


def _loss(
    hidden: Tensor, table: Tensor, targets: Tensor, negatives: int, generator: torch.Generator
) -> Tensor:
    rows = len(table) - 1
    if not 0 < negatives < rows:
        return next_item_cross_entropy(hidden, table, targets)
    drawn = torch.randperm(rows, generator=generator)[:negatives] + 1
    return sampled_cross_entropy(hidden, table, targets, drawn)


def noise_generator(stream: int) -> np.random.Generator:
    """Where the dropout of one client's training in one round comes from."""
    return np.random.Generator(np.random.SFC64(stream_seed(stream, "dropout")))


def draw_noise(task: Task, shape: tuple[int, ...], generator: np.random.Generator) -> Tensor | None:
    """Bits for one batch of ``shape`` (B, L): (B, L, noise_width) int16, None without dropout."""
    return draw_bits((*shape, task.noise_width), generator) if task.noise_width else None


def _fresh_adam(leaves: Params, config: LocalTraining) -> torch.optim.Adam:
    encoder = [tensor for name, tensor in leaves.items() if name != ITEMS]
    groups = [
        {"params": encoder, "lr": config.learning_rate},
        {"params": [leaves[ITEMS]], "lr": config.item_learning_rate},
    ]
    return torch.optim.Adam(groups, fused=True)


def _freeze(leaves: Params, frozen: Masks | None) -> None:
    for name, mask in (frozen or {}).items():
        gradient = leaves[name].grad
        if gradient is not None:
            gradient.masked_fill_(mask, 0.0)


def prefix_samples(
    data: ClientDataset, max_length: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """At most ``count`` (prefix, next item) pairs drawn without replacement from the training data.

    Prefixes (S, max_length) right-padded, lengths (S,), targets (S,).
    """
    places = [(user, end) for user in data.users for end in range(1, len(user.train))]
    chosen = torch.randperm(len(places), generator=generator)[:count].tolist()
    prefixes = [places[i][0].train[: places[i][1]] for i in chosen]
    targets = [int(places[i][0].train[places[i][1]]) for i in chosen]
    items, lengths = pad_right(prefixes or [np.zeros(0, np.int64)], max_length)
    return items[: len(chosen)], lengths[: len(chosen)], torch.tensor(targets, dtype=torch.long)


def make_scorer(task: Task, params: Params, data: ClientDataset, max_length: int) -> Scorer:
    """Scores of the whole catalogue for histories: (U, V + 1); -inf for what cannot be ranked."""
    candidates = task.candidates(data)

    @torch.no_grad()
    def score(histories: Sequence[ItemArray]) -> Tensor:
        codes, lengths = pad_right(histories, max_length)
        items, table = with_unseen(task, params[ITEMS], data, codes)
        hidden = task.apply({**params, ITEMS: table}, items, None)
        last = hidden[torch.arange(len(items)), (lengths - 1).clamp(min=0)]
        scores = torch.full((len(items), data.num_items + 1), -torch.inf)
        scores[:, candidates] = last @ params[ITEMS][1:].T
        return scores

    return score


def with_unseen(
    task: Task, table: Tensor, data: ClientDataset, codes: Tensor
) -> tuple[Tensor, Tensor]:
    """``codes`` as row numbers, and the client's table with a row for each of them.

    Rows of items that the client's table (V' + 1, D) lacks come after its own.
    """
    known = task.candidates(data).numpy()
    unseen = np.setdiff1d(codes.numpy(), known)
    unseen = unseen[unseen > 0]
    numbers = torch.zeros(data.num_items + 1, dtype=torch.long)
    numbers[np.concatenate([known, unseen])] = torch.arange(1, len(known) + len(unseen) + 1)
    if len(unseen):
        table = torch.cat([table, task.unseen_rows(data, unseen).to(table.dtype)])
    return numbers[codes], table
