"""The plain loop: one client trained step by step, the reference for every other way to train."""

from __future__ import annotations

from torch import Tensor

from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, clone
from pfsr_core.training.local import Job, LocalTraining, LossSum
from pfsr_core.training.losses import next_item_cross_entropy, sampled_cross_entropy
from pfsr_core.training.optimizers import freeze, fresh_optimizer
from pfsr_core.training.steps import Step, client_windows, steps
from pfsr_core.training.task import Task, client_item_index


def train(task: Task, config: LocalTraining, job: Job) -> tuple[Params, LossSum]:
    """``local_epochs`` passes with a fresh optimiser; returns new parameters, writes no input.

    The reference: other ways to train must end with the same parameters.
    """
    windows = client_windows(task, config, job.data)
    params, losses = clone(job.params), LossSum()
    if not len(windows):
        return params, losses
    leaves = {name: tensor.requires_grad_() for name, tensor in params.items()}
    optimizer, rows = fresh_optimizer(leaves, config.settings), client_item_index(task, job.data)
    for step in steps(task, config, job, windows):
        model = task.items.materialize(leaves, rows)
        hidden = task.model.apply(model, step.inputs, step.bits, step.times, step.context)
        loss = _loss(hidden, model[ITEMS], step)
        losses = losses.add(float(loss.detach()), float((step.targets > 0).sum()))
        if job.extra_loss is not None:
            loss = loss + job.extra_loss.term(leaves, job.extra_loss.context)
        optimizer.zero_grad()
        loss.backward()
        freeze(leaves, job.frozen)
        optimizer.step()
    return {name: tensor.detach() for name, tensor in leaves.items()}, losses


def _loss(hidden: Tensor, table: Tensor, step: Step) -> Tensor:
    if step.negatives is None:
        return next_item_cross_entropy(hidden, table, step.targets, step.soft)
    return sampled_cross_entropy(hidden, table, step.targets, step.negatives)
