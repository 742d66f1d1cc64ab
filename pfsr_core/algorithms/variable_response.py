"""The variable response mechanism: what a client keeps local, by its Fisher information.

After a client's training the diagonal Fisher information of its encoder is estimated from samples
of its histories, and the mask marks the coordinates that stay local in its next round. Sources of
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
    local_training: LocalTraining,
    trained_params: Sequence[Params],
    jobs: Sequence[Job],
    *,
    num_samples: int,
    mask_of: MaskRule | None,
) -> list[Masks]:
    """The mask of the next round for each client.

    Args:
        task: The model; only its shared names can be masked, and none that is always averaged.
        local_training: How clients train.
        trained_params: The parameters of each client after its training.
        jobs: What each was trained by.
        num_samples: Number of (prefix, target) samples that the information is estimated from.
        mask_of: What is masked; None masks nothing.

    Returns:
        A mask for each job; that of a client without an item to predict is empty.
    """
    masks = [empty_masks(task.partition.split(params)[0]) for params in trained_params]
    if mask_of is None:
        return masks
    sampled_jobs = [job_index for job_index, job in enumerate(jobs) if can_be_sampled(job.data)]
    fisher_clients = [
        client_samples(
            task, local_training, num_samples, trained_params[job_index], jobs[job_index]
        )
        for job_index in sampled_jobs
    ]
    fishers = client_fishers(
        target_log_probability(task), fisher_clients, local_training.settings.engine
    )
    for job_index, fisher in zip(sampled_jobs, fishers, strict=True):
        masks[job_index] |= mask_of(fisher)
    return masks


def can_be_sampled(client_data: ClientDataset) -> bool:
    """Whether a user has an item to predict."""
    return client_data.num_interactions > len(client_data.users)


def fisher_samples(
    task: Task, local_training: LocalTraining, job: Job, num_samples: int
) -> Samples:
    """:func:`prefix_samples` of a client in its stream, items as rows of its table."""
    generator = torch.Generator().manual_seed(stream_seed(job.stream, "fisher"))
    samples = prefix_samples(
        job.data,
        local_training.max_length,
        num_samples,
        generator,
        with_times=task.model.reads_times,
    )
    candidate_codes = task.items.candidates(job.data)
    return samples._replace(
        prefixes=row_numbers(samples.prefixes, candidate_codes),
        targets=row_numbers(samples.targets, candidate_codes),
    )


def client_samples(
    task: Task, local_training: LocalTraining, num_samples: int, params: Params, job: Job
) -> Sampled:
    """A client's ``num_samples`` Fisher samples, and which of its names may be masked."""
    maskable_params = select(params, task.partition.shared - task.items.averaged)
    return Sampled(
        encoder=maskable_params,
        private={
            tensor_name: tensor
            for tensor_name, tensor in params.items()
            if tensor_name not in maskable_params
        },
        samples=fisher_samples(task, local_training, job, num_samples),
        items=len(task.items.candidates(job.data)) + 1,
        rows=client_item_index(task, job.data),
    )


def target_log_probability(task: Task) -> LogProbability:
    """Of a target after a prefix, as a function of the encoder: what the information is of."""
    index_names = (OWN_ROWS, TABLE_ROWS)

    def of_target(
        params: Params,
        constants: Params,
        prefix: Tensor,
        length: Tensor,
        target: Tensor,
        *times: Tensor,
    ) -> Tensor:
        other_params = {
            tensor_name: tensor
            for tensor_name, tensor in constants.items()
            if tensor_name not in (ROWS, *index_names)
        }
        item_index = {
            tensor_name: constants[tensor_name]
            for tensor_name in index_names
            if tensor_name in constants
        }
        merged_params = task.items.materialize({**params, **other_params}, item_index)
        prefix_times = times[0][None] if times else None
        hidden = task.model.apply(merged_params, prefix[None], None, prefix_times)[0]
        last_hidden = hidden.index_select(0, (length - 1).reshape(1))[0]
        logits = merged_params[ITEMS][1:] @ last_hidden
        if ROWS in constants:
            logits = logits + constants[ROWS]
        return torch.log_softmax(logits, 0).index_select(0, (target - 1).reshape(1))[0]

    return of_target
