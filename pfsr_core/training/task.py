"""A task: the model as functions of parameters, and everything about it that training reads.

Four subjects, a small frozen value each: the model, the partition of its names, its items, and the
loss. An algorithm takes a task and knows neither modules nor settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.items.functions import ItemFunctions
from pfsr_core.items.soft_targets import SoftTargetsOf
from pfsr_core.items.tables import item_rows
from pfsr_core.models.compressors import latest_start
from pfsr_core.models.next_item import Apply, Compress, ContinueFrom
from pfsr_core.params import Params, Partition


@dataclass(frozen=True)
class Serving:
    """How a model serves from the stored memory of a user.

    The functions are those of :class:`pfsr_core.models.compressors.MemoryCompressor`, of parameters
    and item codes instead of embedded items.
    """

    memory_length: Callable[[int, int | None], int]
    compress: Compress
    continue_from: ContinueFrom


@dataclass(frozen=True)
class ModelFunctions:
    """A sequence model as functions, and what must be prepared for them.

    Attributes:
        apply: The model: see :class:`pfsr_core.models.next_item.Apply`.
        noise_width: Random numbers that dropout takes at every position; 0 without dropout.
        reads_times: Whether ``apply`` makes use of times; elsewhere none are prepared.
        num_memory_tokens: Positions that the model adds before every sequence; a sequence is then
            split at random in training.
        window_start: ``(length, max_length)`` to the first item read of a history.
        split_points: ``(lengths)`` to how many of what is read are old: (B,).
        serving: None where every answer reads the history anew.
    """

    apply: Apply
    noise_width: int = 0
    reads_times: bool = False
    num_memory_tokens: int = 0
    window_start: Callable[[int, int], int] = latest_start
    split_points: Callable[[Tensor], Tensor] = torch.zeros_like
    serving: Serving | None = None


@dataclass(frozen=True)
class ParamPartition:
    """Which names are shared with the server and which stay with a client, and where each starts.

    Attributes:
        names: Shared | private, disjoint and complete.
        init_shared: Fresh copies of the shared tensors.
        init_private: Fresh copies of a client's private tensors.
    """

    names: Partition
    init_shared: Callable[[], Params]
    init_private: Callable[[ClientDataset], Params]

    @property
    def shared(self) -> frozenset[str]:
        """Names that are sent."""
        return self.names.shared

    @property
    def private(self) -> frozenset[str]:
        """Names that never leave a client."""
        return self.names.private

    def split(self, params: Params) -> tuple[Params, Params]:
        """(shared, private) tensors of ``params``. Raises PartitionError on other names."""
        return self.names.split(params)


@dataclass(frozen=True)
class TaskLoss:
    """What the loss adds to a plain next-item cross-entropy.

    ``soft_targets(candidates)``: which items share a target's probability; None for hard targets.
    """

    soft_targets: SoftTargetsOf | None = None


@dataclass(frozen=True)
class Task:
    """A model as an algorithm sees it: functions of parameters, and who owns which of them."""

    model: ModelFunctions
    partition: ParamPartition
    items: ItemFunctions
    loss: TaskLoss = TaskLoss()


def client_item_index(task: Task, client_data: ClientDataset) -> Params:
    """:func:`item_rows` of a client, whose private item tensor has the items it touched."""
    return item_rows(
        client_data.touched, task.items.candidates(client_data), client_data.own_catalogue
    )
