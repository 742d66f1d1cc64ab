"""The plain loop: one client trained step by step, the reference for every other way to train."""

from __future__ import annotations

from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, clone
from pfsr_core.training.local import Job, LocalTraining, LossSum
from pfsr_core.training.losses import next_item_cross_entropy, sampled_cross_entropy
from pfsr_core.training.optimizers import freeze, fresh_optimizer
from pfsr_core.training.steps import client_windows, steps
from pfsr_core.training.task import Task, client_item_index


def train(task: Task, local_training: LocalTraining, job: Job) -> tuple[Params, LossSum]:
    """Trains one client for ``local_epochs`` passes with a fresh optimiser.

    The reference: other ways to train must end with the same parameters.

    Args:
        task: The model, its partition and its loss.
        local_training: How the client trains.
        job: The client; its parameters are not written to.

    Returns:
        New merged parameters, and the sum of the losses.
    """
    windows = client_windows(task, local_training, job.data)
    params, loss_sum = clone(job.params), LossSum()
    if not len(windows):
        return params, loss_sum
    leaf_params = {tensor_name: tensor.requires_grad_() for tensor_name, tensor in params.items()}
    optimizer = fresh_optimizer(leaf_params, local_training.settings)
    item_index = client_item_index(task, job.data)
    for step in steps(task, local_training, job, windows):
        merged_params = task.items.materialize(leaf_params, item_index)
        hidden = task.model.apply(merged_params, step.inputs, step.bits, step.times, step.context)
        if step.negatives is None:
            step_loss = next_item_cross_entropy(
                hidden, merged_params[ITEMS], step.targets, step.soft
            )
        else:
            step_loss = sampled_cross_entropy(
                hidden, merged_params[ITEMS], step.targets, step.negatives
            )
        loss_sum = loss_sum.add(float(step_loss.detach()), float((step.targets > 0).sum()))
        if job.extra_loss is not None:
            step_loss = step_loss + job.extra_loss.term(leaf_params, job.extra_loss.context)
        optimizer.zero_grad()
        step_loss.backward()
        freeze(leaf_params, job.frozen)
        optimizer.step()
    return {tensor_name: tensor.detach() for tensor_name, tensor in leaf_params.items()}, loss_sum
