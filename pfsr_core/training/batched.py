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
        rows: Which items the rows of its item tensors are of.
        windows: Its windows, items as row numbers of its table.
        steps: How many steps it takes in all.
        size: Its largest step.
    """

    job: Job
    rows: Params
    windows: Windows
    steps: int
    size: Size


def train_clients(task: Task, config: LocalTraining, jobs: Sequence[Job]) -> list[Trained]:
    """Every job trained, in the order given, in the way that ``train.engine`` names."""
    settings = config.settings
    if settings.engine == "loop" or settings.negatives:  # every client draws its own sample of rows
        return [train(task, config, job) for job in jobs]
    limit = SMALL if settings.engine == "auto" else None
    clients = [_batched_client(task, config, job) for job in jobs]
    results: dict[int, Trained] = {}
    for group in _groups(clients, limit):
        results |= zip(group, _train_group(task, config, [clients[i] for i in group]), strict=True)
    for index in set(range(len(jobs))) - set(results):
        results[index] = train(task, config, jobs[index])
    return [results[index] for index in range(len(jobs))]


def _batched_client(task: Task, config: LocalTraining, job: Job) -> BatchedClient:
    windows = client_windows(task, config, job.data)
    settings = config.settings
    count = settings.local_epochs * -(-len(windows) // settings.batch_size)
    items = len(task.items.candidates(job.data)) + 1
    size = Size(
        rows=min(len(windows), settings.batch_size),
        length=task.model.num_memory_tokens + windows.longest - 1 if len(windows) else 0,
        items=items,
        parameters=parameters_of(job.params, items),
    )
    return BatchedClient(job, client_item_index(task, job.data), windows, count, size)


def _groups(clients: Sequence[BatchedClient], limit: int | None) -> Iterator[list[int]]:
    """Positions of the clients that share a group, most steps first; larger clients are in none."""
    training = [i for i, client in enumerate(clients) if client.steps]
    small = [i for i in training if limit is None or clients[i].size.positions <= limit]
    for group in group_by_size({i: clients[i].size for i in small}, lambda i: clients[i].steps):
        if limit is None or len(group) > 1:
            yield group


def _train_group(
    task: Task, config: LocalTraining, clients: Sequence[BatchedClient]
) -> list[Trained]:
    stacks = stack_params([client.job.params for client in clients])
    leaves = {name: stack.requires_grad_() for name, stack in stacks.items()}
    optimizer = fresh_optimizer(leaves, config.settings)
    frozen = _stack_masks([client.job for client in clients])
    extra = _stack_extra([client.job.extra_loss for client in clients])
    mask = padding_logit_mask([client.size.items for client in clients])
    rows = stack_rows([client.rows for client in clients])
    streams = [steps(task, config, client.job, client.windows) for client in clients]
    losses = [LossSum() for _ in clients]
    for number in range(clients[0].steps):
        active = sum(client.steps > number for client in clients)
        if active < len(next(iter(leaves.values()))):
            leaves, optimizer = _keep_active(active, leaves, optimizer, config)
        step = _collate([next(stream) for stream in streams[:active]])
        means, counts = _cross_entropies(task, leaves, _rows(rows, active), step, mask[:active])
        for k, (mean, count) in enumerate(zip(means.tolist(), counts.tolist(), strict=True)):
            losses[k] = losses[k].add(mean, count)
        loss = means.sum()
        if extra is not None:
            context = {group: _rows(part, active) for group, part in extra.context.items()}
            loss = loss + vmap(extra.term)(leaves, context).sum()
        optimizer.zero_grad()
        loss.backward()
        freeze(leaves, _rows(frozen, active))
        optimizer.step()
    trained = unstack_params(stacks, [client.job.params for client in clients])
    return list(zip(trained, losses, strict=True))


def _stack_masks(jobs: Sequence[Job]) -> Masks:
    """(K, ...) for every name that a client has frozen coordinates of; free where it has none."""
    names = dict.fromkeys(name for job in jobs for name in job.frozen or {})

    def mask(job: Job, name: str) -> Tensor:
        free = torch.zeros(job.params[name].shape, dtype=torch.bool)
        return (job.frozen or {}).get(name, free)

    return stack_params([{name: mask(job, name) for name in names} for job in jobs])


def _stack_extra(extras: Sequence[ExtraLoss | None]) -> ExtraLoss | None:
    found = [extra for extra in extras if extra is not None]
    if not found:
        return None
    context = {
        group: {name: torch.stack([one.context[group][name] for one in found]) for name in tensors}
        for group, tensors in found[0].context.items()
    }
    return ExtraLoss(found[0].term, context)


def _keep_active(
    count: int, leaves: Params, optimizer: torch.optim.Optimizer, config: LocalTraining
) -> tuple[Params, torch.optim.Optimizer]:
    """The first ``count`` clients and their moments: views, so that the whole stacks move on."""
    fewer = {name: leaf.detach()[:count].requires_grad_() for name, leaf in leaves.items()}
    for_fewer = fresh_optimizer(fewer, config.settings)
    for name, leaf in leaves.items():
        if leaf in optimizer.state:
            moments = optimizer.state[leaf]
            for_fewer.state[fewer[name]] = {
                key: value if key == "step" else value[:count] for key, value in moments.items()
            }
    return fewer, for_fewer


def _rows(stacks: Params, count: int) -> Params:
    return {name: stack[:count] for name, stack in stacks.items()}


def _collate(found: Sequence[Step]) -> Step:
    """The clients' steps padded to (K, B, L): rows of zeros have no target."""
    soft = [step.soft for step in found if step.soft is not None]
    contexts = zip(*(step.context for step in found), strict=True)
    return Step(
        inputs=pad_together([step.inputs for step in found]),
        targets=pad_together([step.targets for step in found]),
        bits=pad_known([step.bits for step in found]),
        context=SequenceContext(*map(pad_and_stack, contexts)),
        negatives=None,
        soft=_collate_soft(soft) if soft else None,
        times=pad_known([step.times for step in found]),
    )


def _collate_soft(parts: Sequence[SoftTargets]) -> SoftTargets:
    """(K, B, L, N); where rows fill up any row will do, as it weighs nothing."""
    rows = pad_together([part.rows for part in parts]).clamp(min=1)
    return SoftTargets(rows, pad_together([part.weights for part in parts]))


def _cross_entropies(
    task: Task, leaves: Params, rows: Params, step: Step, padding_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of every client and how many targets it had: (K,) each."""
    models = vmap(task.items.materialize)(leaves, rows)
    given = (models, step.inputs, step.bits, step.times, step.context)
    dims = tuple(None if part is None else 0 for part in given)
    hidden = vmap(task.model.apply, in_dims=dims)(*given).flatten(1, 2)
    logits = grouped_product(hidden, models[ITEMS][:, 1:].mT, padding_mask.to(hidden.dtype))
    labels = step.targets.flatten(1) - 1
    losses = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-1, reduction="none"
    )
    losses, counts = losses.view(labels.shape), (labels >= 0).sum(1)
    if step.soft is not None:
        soft = SoftTargets(step.soft.rows.flatten(1, 2), step.soft.weights.flatten(1, 2))
        losses = add_soft_targets(losses, logits, labels, soft)
    return losses.sum(1) / counts, counts
