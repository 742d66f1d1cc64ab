"""The variable response mechanism: what a client keeps local, by its Fisher information.

After a client's training the diagonal Fisher information of its encoder is estimated from samples
of its histories, and the mask says which coordinates it keeps at home in its next round. Sources of
form and thresholds: :mod:`pfsr_core.algorithms.pfsr`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.items.tables import OWN_ROWS, TABLE_ROWS, row_numbers
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, select
from pfsr_core.randomness import stream_seed
from pfsr_core.training.batched_fisher import ROWS, Sampled, client_fishers
from pfsr_core.training.fisher import (
    LogProbability,
    Masks,
    Samples,
    empty_masks,
)
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.task import Task, client_item_index
from pfsr_core.training.windows import prefix_samples

MaskRule = Callable[[Params], Masks]
"""A client's Fisher information, by parameter name -> the coordinates that it keeps"""


def response_masks(
    task: Task,
    training: LocalTraining,
    trained: Sequence[Params],
    jobs: Sequence[Job],
    *,
    num_samples: int,
    mask_of: MaskRule | None,
) -> list[Masks]:
    """The mask of the next round for each client.

    Args:
        task: The model; only its shared names can be masked, and none that is always averaged.
        training: How clients train.
        trained: The parameters of each client after its training.
        jobs: What each was trained by.
        num_samples: Number of (prefix, target) samples that the information is estimated from.
        mask_of: What is masked; None masks nothing.

    Returns:
        A mask for each job; that of a client without an item to predict is empty.
    """
    masks = [empty_masks(task.partition.split(params)[0]) for params in trained]
    if mask_of is None:
        return masks
    sampled = [i for i, job in enumerate(jobs) if can_be_sampled(job.data)]
    samples = [client_samples(task, training, num_samples, trained[i], jobs[i]) for i in sampled]
    fishers = client_fishers(target_log_probability(task), samples, training.settings.engine)
    for i, fisher in zip(sampled, fishers, strict=True):
        masks[i] |= mask_of(fisher)
    return masks


def can_be_sampled(data: ClientDataset) -> bool:
    """Whether a user has an item to predict."""
    return data.num_interactions > len(data.users)


def fisher_samples(task: Task, training: LocalTraining, job: Job, count: int) -> Samples:
    """:func:`prefix_samples` of a client in its stream, items as rows of its table."""
    generator = torch.Generator().manual_seed(stream_seed(job.stream, "fisher"))
    samples = prefix_samples(
        job.data, training.max_length, count, generator, with_times=task.model.reads_times
    )
    rows = task.items.candidates(job.data)
    return samples._replace(
        prefixes=row_numbers(samples.prefixes, rows), targets=row_numbers(samples.targets, rows)
    )


def client_samples(
    task: Task, training: LocalTraining, count: int, params: Params, job: Job
) -> Sampled:
    """A client's ``count`` Fisher samples, and which of its names may be masked."""
    masked = select(params, task.partition.shared - task.items.averaged)
    return Sampled(
        encoder=masked,
        private={name: tensor for name, tensor in params.items() if name not in masked},
        samples=fisher_samples(task, training, job, count),
        items=len(task.items.candidates(job.data)) + 1,
        rows=client_item_index(task, job.data),
    )


def target_log_probability(task: Task) -> LogProbability:
    """Of a target after a prefix, as a function of the encoder: what the information is of."""
    named = (OWN_ROWS, TABLE_ROWS)

    def of_target(
        params: Params,
        constants: Params,
        prefix: Tensor,
        length: Tensor,
        target: Tensor,
        *times: Tensor,
    ) -> Tensor:
        rest = {name: part for name, part in constants.items() if name not in (ROWS, *named)}
        rows = {name: constants[name] for name in named if name in constants}
        model = task.items.materialize({**params, **rest}, rows)
        known = times[0][None] if times else None
        hidden = task.model.apply(model, prefix[None], None, known)[0]
        last = hidden.index_select(0, (length - 1).reshape(1))[0]
        logits = model[ITEMS][1:] @ last
        if ROWS in constants:
            logits = logits + constants[ROWS]
        return torch.log_softmax(logits, 0).index_select(0, (target - 1).reshape(1))[0]

    return of_target
