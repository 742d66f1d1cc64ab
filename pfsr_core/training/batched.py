"""Training of many small clients as one program: parameters stacked, one pass for all of them.

One user's step is a few dozen operations on small tensors, most of whose cost is the call. Here K
clients take a step together: every parameter is (K, ...), the model is mapped over the first
dimension, and Adam, which is elementwise, runs on the stacks. Nothing of one client reaches
another, so each ends where :func:`pfsr_core.training.loop.train` would have left it, up to
rounding.

Clients of similar size share a group. They are sorted by their number of steps, so that those still
training are the first ones: a client that is done is not touched any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from pfsr_core.items.soft_targets import SoftTargets
from pfsr_core.models.compressors import SequenceContext
from pfsr_core.models.ops.matmul import grouped_product
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.training.fisher import Masks
from pfsr_core.training.grouping import Size, group_by_size, parameters_of
from pfsr_core.training.local import ExtraLoss, Job, LocalTraining, LossSum
from pfsr_core.training.loop import train
from pfsr_core.training.losses import add_soft_targets
from pfsr_core.training.optimizers import freeze, fresh_optimizer
from pfsr_core.training.stacking import (
    pad_and_stack,
    pad_known,
    pad_together,
    padding_logit_mask,
    stack_params,
    stack_rows,
    unstack_params,
)
from pfsr_core.training.steps import Step, client_windows, steps
from pfsr_core.training.task import Task, client_item_index
from pfsr_core.training.windows import Windows

SMALL = 512  # positions of a client's step up to which a group pays: docs/performance.md

Trained = tuple[Params, LossSum]


@dataclass(frozen=True)
class BatchedClient:
    """A client of a batch: its job, its windows, how many steps it takes.

    Attributes:
        job: Its training.
        item_index: Which items the rows of its item tensors are of.
        windows: Its windows, items as row numbers of its table.
        steps: How many steps it takes in all.
        size: Its largest step.
    """

    job: Job
    item_index: Params
    windows: Windows
    steps: int
    size: Size


def train_clients(task: Task, local_training: LocalTraining, jobs: Sequence[Job]) -> list[Trained]:
    """Trains clients in the way that ``train.engine`` names.

    Args:
        task: The model, its partition and its loss.
        local_training: How every client trains.
        jobs: The clients, each with its own parameters and stream of random numbers.

    Returns:
        Merged parameters and the sum of losses of every client, in the order of ``jobs``.
    """
    settings = local_training.settings
    if settings.engine == "loop" or settings.negatives:  # every client draws its own sample of rows
        return [train(task, local_training, job) for job in jobs]
    max_positions = SMALL if settings.engine == "auto" else None
    clients = [_batched_client(task, local_training, job) for job in jobs]
    results_by_job: dict[int, Trained] = {}
    for group_indices in _groups(clients, max_positions):
        results_by_job |= zip(
            group_indices,
            _train_group(task, local_training, [clients[i] for i in group_indices]),
            strict=True,
        )
    for job_index in set(range(len(jobs))) - set(results_by_job):
        results_by_job[job_index] = train(task, local_training, jobs[job_index])
    return [results_by_job[job_index] for job_index in range(len(jobs))]


def _batched_client(task: Task, local_training: LocalTraining, job: Job) -> BatchedClient:
    windows = client_windows(task, local_training, job.data)
    settings = local_training.settings
    num_steps = settings.local_epochs * -(-len(windows) // settings.batch_size)
    table_rows = len(task.items.candidates(job.data)) + 1
    size = Size(
        rows=min(len(windows), settings.batch_size),
        length=task.model.num_memory_tokens + windows.longest - 1 if len(windows) else 0,
        items=table_rows,
        parameters=parameters_of(job.params, table_rows),
    )
    return BatchedClient(job, client_item_index(task, job.data), windows, num_steps, size)


def _groups(clients: Sequence[BatchedClient], max_positions: int | None) -> Iterator[list[int]]:
    """Positions of the clients that share a group, most steps first; larger clients are in none."""
    training_indices = [i for i, client in enumerate(clients) if client.steps]
    small_indices = [
        i
        for i in training_indices
        if max_positions is None or clients[i].size.positions <= max_positions
    ]
    for group_indices in group_by_size(
        {i: clients[i].size for i in small_indices}, lambda i: clients[i].steps
    ):
        if max_positions is None or len(group_indices) > 1:
            yield group_indices


def _train_group(
    task: Task, local_training: LocalTraining, clients: Sequence[BatchedClient]
) -> list[Trained]:
    stacked_params = stack_params([client.job.params for client in clients])
    leaf_params = {name: stack.requires_grad_() for name, stack in stacked_params.items()}
    optimizer = fresh_optimizer(leaf_params, local_training.settings)
    frozen_masks = _stack_masks([client.job for client in clients])
    extra = _stack_extra([client.job.extra_loss for client in clients])
    padding_mask = padding_logit_mask([client.size.items for client in clients])
    item_index = stack_rows([client.item_index for client in clients])
    step_streams = [steps(task, local_training, client.job, client.windows) for client in clients]
    loss_sums = [LossSum() for _ in clients]
    for step_number in range(clients[0].steps):
        num_active = sum(client.steps > step_number for client in clients)
        if num_active < len(next(iter(leaf_params.values()))):
            leaf_params, optimizer = _keep_active(
                num_active, leaf_params, optimizer, local_training
            )
        step = _collate([next(stream) for stream in step_streams[:num_active]])
        mean_losses, target_counts = _cross_entropies(
            task, leaf_params, _rows(item_index, num_active), step, padding_mask[:num_active]
        )
        for k, (mean_loss, target_count) in enumerate(
            zip(mean_losses.tolist(), target_counts.tolist(), strict=True)
        ):
            loss_sums[k] = loss_sums[k].add(mean_loss, target_count)
        total_loss = mean_losses.sum()
        if extra is not None:
            loss_context = {group: _rows(part, num_active) for group, part in extra.context.items()}
            total_loss = total_loss + vmap(extra.term)(leaf_params, loss_context).sum()
        optimizer.zero_grad()
        total_loss.backward()
        freeze(leaf_params, _rows(frozen_masks, num_active))
        optimizer.step()
    trained_params = unstack_params(stacked_params, [client.job.params for client in clients])
    return list(zip(trained_params, loss_sums, strict=True))


def _stack_masks(jobs: Sequence[Job]) -> Masks:
    """(K, ...) for every name that a client has frozen coordinates of; free where it has none."""
    frozen_names = dict.fromkeys(tensor_name for job in jobs for tensor_name in job.frozen or {})

    def mask(job: Job, tensor_name: str) -> Tensor:
        free_mask = torch.zeros(job.params[tensor_name].shape, dtype=torch.bool)
        return (job.frozen or {}).get(tensor_name, free_mask)

    return stack_params(
        [{tensor_name: mask(job, tensor_name) for tensor_name in frozen_names} for job in jobs]
    )


def _stack_extra(extra_losses: Sequence[ExtraLoss | None]) -> ExtraLoss | None:
    given_losses = [extra for extra in extra_losses if extra is not None]
    if not given_losses:
        return None
    loss_context = {
        group: {
            tensor_name: torch.stack(
                [given_loss.context[group][tensor_name] for given_loss in given_losses]
            )
            for tensor_name in tensors
        }
        for group, tensors in given_losses[0].context.items()
    }
    return ExtraLoss(given_losses[0].term, loss_context)


def _keep_active(
    num_active: int,
    leaf_params: Params,
    optimizer: torch.optim.Optimizer,
    local_training: LocalTraining,
) -> tuple[Params, torch.optim.Optimizer]:
    """The first ``num_active`` clients and their moments.

    The results are views, so that steps on them update the whole stacks.
    """
    active_leaves = {
        tensor_name: leaf.detach()[:num_active].requires_grad_()
        for tensor_name, leaf in leaf_params.items()
    }
    active_optimizer = fresh_optimizer(active_leaves, local_training.settings)
    for tensor_name, leaf in leaf_params.items():
        if leaf in optimizer.state:
            moments = optimizer.state[leaf]
            active_optimizer.state[active_leaves[tensor_name]] = {
                state_key: state_value if state_key == "step" else state_value[:num_active]
                for state_key, state_value in moments.items()
            }
    return active_leaves, active_optimizer


def _rows(stacked_params: Params, num_clients: int) -> Params:
    return {tensor_name: stack[:num_clients] for tensor_name, stack in stacked_params.items()}


def _collate(client_steps: Sequence[Step]) -> Step:
    """The clients' steps padded to (K, B, L): rows of zeros have no target."""
    soft_targets = [step.soft for step in client_steps if step.soft is not None]
    contexts = zip(*(step.context for step in client_steps), strict=True)
    return Step(
        inputs=pad_together([step.inputs for step in client_steps]),
        targets=pad_together([step.targets for step in client_steps]),
        bits=pad_known([step.bits for step in client_steps]),
        context=SequenceContext(*map(pad_and_stack, contexts)),
        negatives=None,
        soft=_collate_soft(soft_targets) if soft_targets else None,
        times=pad_known([step.times for step in client_steps]),
    )


def _collate_soft(client_targets: Sequence[SoftTargets]) -> SoftTargets:
    """(K, B, L, N); where rows fill up any row will do, as it weighs nothing."""
    padded_rows = pad_together([soft_targets.rows for soft_targets in client_targets]).clamp(min=1)
    return SoftTargets(
        padded_rows, pad_together([soft_targets.weights for soft_targets in client_targets])
    )


def _cross_entropies(
    task: Task, stacked_params: Params, item_index: Params, step: Step, padding_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of every client and how many targets it had: (K,) each."""
    stacked_models = vmap(task.items.materialize)(stacked_params, item_index)
    model_inputs = (stacked_models, step.inputs, step.bits, step.times, step.context)
    dims = tuple(None if model_input is None else 0 for model_input in model_inputs)
    hidden = vmap(task.model.apply, in_dims=dims)(*model_inputs).flatten(1, 2)
    logits = grouped_product(hidden, stacked_models[ITEMS][:, 1:].mT, padding_mask.to(hidden.dtype))
    labels = step.targets.flatten(1) - 1
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none"
    )
    losses, target_counts = losses.view(labels.shape), (labels >= 0).sum(1)
    if step.soft is not None:
        soft_targets = SoftTargets(step.soft.rows.flatten(1, 2), step.soft.weights.flatten(1, 2))
        losses = add_soft_targets(losses, logits, labels, soft_targets)
    return losses.sum(1) / target_counts, target_counts
