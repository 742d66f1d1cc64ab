"""PFSR: Fisher-masked personalization and the dynamic magnitude loss over a shared encoder.

Provenance. The item table stays on the client, an encoder is averaged, informative coordinates stay
local and a dynamic magnitude loss balances the two: the abstract and summaries of PFSR
(arXiv 2603.22349). The form of mask, merge, two phases and constraint: FedDPA (Yang et al.,
NeurIPS 2023). The quantile mask, the dynamic C_t (median of the clients' last update norms), its
place as a bound from above, and the count aggregation are this project's own.

    client  F = diagonal Fisher of theta_k_old;  M = mask(F)     (variable response mechanism)
            theta <- M * theta_k_old + (1 - M) * theta_g
            phase 1 trains the kept coordinates, phase 2 the others; the item table trains in both
            L = CE + lambda1/2 sum_j M_j (theta_j - theta_k_old_j)^2
                   + lambda2/2 max(0, || (1 - M)(theta - theta_g) ||_2 - C_t)^2
            reply theta_g + (1 - M)(theta - theta_g)
    server  weighted mean;  C_{t+1} = median of the update norms

A client's first participation has M = 0: it is federated averaging. The mask is computed at the end
of a round, from the encoder and samples that the next one would start with, so that serving has it
too. Encoder and mask are kept in the client's state under ``personal/`` and ``mask/``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import fed_avg, loss_metrics
from pfsr_core.algorithms.server_step import ServerStep, average
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import Broadcast, ClientUpdate, FederatedAlgorithm, Reply, ServerState
from pfsr_core.fisher import (
    LogProbability,
    Masks,
    diagonal_fisher,
    empty_masks,
    kept_share,
    merge_by_mask,
    minmax_mask,
    quantile_mask,
)
from pfsr_core.local_training import (
    LocalTraining,
    LossSum,
    Task,
    prefix_samples,
    stream_seed,
    train,
)
from pfsr_core.losses import keep_local, magnitude
from pfsr_core.models.item_tables import row_numbers
from pfsr_core.models.next_item import ITEMS
from pfsr_core.params import Params, Shapes, distance

PERSONAL = "personal/"
MASK = "mask/"
UNMASKED = "unmasked/"
TARGET_NORM = "target-norm"


@dataclass(frozen=True)
class Response:
    """The variable response mechanism. ``rho``: kept share of a tensor; ``tau``: FedDPA's bar.

    ``mask_mode``: "quantile" (by rho), "minmax" (by tau) or "none".
    ``serve``: what a client recommends with, its encoder as the next round would start from it
    ("merged": ``M * theta_k + (1 - M) * theta_g``) or as its last training left it ("personal").
    """

    mask_mode: str = "quantile"
    rho: float = 0.25
    tau: float = 0.4
    fisher_samples: int = 256
    serve: str = "merged"


@dataclass(frozen=True)
class Personal:
    """What a client keeps: its encoder, the private names, and the mask of the next round."""

    encoder: Params
    private: Params
    masks: Masks


@dataclass(frozen=True)
class Magnitude:
    """The dynamic magnitude loss: ``keep`` is lambda1, ``magnitude`` is lambda2.

    ``side``: whether norms below C_t are left alone ("above") or pulled up to it too ("both", as in
    FedDPA). C_t is a median of norms: with "both" they cannot shrink as training ends.
    ``anchor``: what the kept coordinates are held to, the client's last encoder ("local") or the
    one just received ("global").
    """

    keep: float = 0.1
    magnitude: float = 0.05
    two_phases: bool = True
    anchor: str = "local"
    side: str = "above"


def pfsr(
    task: Task,
    training: LocalTraining,
    *,
    response: Response = Response(),
    loss: Magnitude = Magnitude(),
    aggregation: str = "zero",
    step: ServerStep = average,
) -> FederatedAlgorithm:
    """PFSR over a task whose item table is private or shared."""
    base = fed_avg(task, training)

    def masks_of(personal: Params, private: Params, data: ClientDataset, stream: int) -> Masks:
        if response.mask_mode == "none" or data.num_interactions <= len(data.users):
            return empty_masks(personal)
        generator = torch.Generator().manual_seed(stream_seed(stream, "fisher"))
        samples = prefix_samples(data, training.max_length, response.fisher_samples, generator)
        prefixes, lengths, targets = samples
        rows = task.candidates(data)
        samples = row_numbers(prefixes, rows), lengths, row_numbers(targets, rows)
        log_probability = _log_probability(task, private)
        fisher = diagonal_fisher(log_probability, personal, samples)
        if response.mask_mode == "minmax":
            return minmax_mask(fisher, response.tau)
        return quantile_mask(fisher, response.rho)

    def local(
        broadcast: Broadcast, state: Params, data: ClientDataset
    ) -> tuple[Personal, Masks, LossSum]:
        stream = stream_seed(training.seed, "client", data.client, broadcast.round)
        shared = broadcast.params
        old = split_state(state, shared)
        merged = {**merge_by_mask(old.masks, old.encoder, shared), **old.private}
        extra = _magnitude_loss(loss, old, broadcast)
        train_once = partial(
            train, task, training.in_round(broadcast.round), data=data, extra_loss=extra
        )
        if loss.two_phases:
            trained, losses = _phases(train_once, merged, old.masks, stream)
        else:
            trained, losses = train_once(merged, stream=stream)
        encoder, private = task.partition.split(trained)
        masks = masks_of(encoder, private, data, stream)
        return Personal(encoder, private, masks), old.masks, losses

    def client_update(broadcast: Broadcast, state: Params, data: ClientDataset) -> ClientUpdate:
        new, masks, losses = local(broadcast, state, data)
        shared = broadcast.params
        reply = {name: torch.where(masks[name], shared[name], new.encoder[name]) for name in shared}
        norm = float(distance(reply, shared))
        if aggregation == "count":
            reply |= {UNMASKED + name: (~mask).float() for name, mask in masks.items()}
        kept = {f"kept/{name}": share for name, share in kept_share(masks).items()}
        return ClientUpdate(
            params=reply,
            weight=float(data.num_interactions),
            metrics={**loss_metrics(losses), **kept, "clients": 1.0},
            state=join_state(new),
            norm=norm,
        )

    def personalize(shared: Params, state: Params) -> Params:
        own = split_state(state, shared)
        if response.serve == "personal":
            return {**own.encoder, **own.private}
        return {**merge_by_mask(own.masks, own.encoder, shared), **own.private}

    def finetune(broadcast: Broadcast, state: Params, data: ClientDataset) -> Params:
        return join_state(local(broadcast, state, data)[0])

    return replace(
        base,
        client_update=client_update,
        server_update=_server_update(aggregation, step),
        personalize=personalize,
        finetune=finetune,
        reply_shapes=_reply_shapes(base.reply_shapes, aggregation),
    )


def split_state(state: Params, shared: Params) -> Personal:
    """A client's state in its parts; before the first participation: ``shared``, nothing kept."""
    encoder = _under(PERSONAL, state) or dict(shared)
    masks = _under(MASK, state) or empty_masks(shared)
    prefixes = (PERSONAL, MASK)
    private = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    return Personal(encoder, private, masks)


def join_state(personal: Personal) -> Params:
    """Undoes :func:`split_state`."""
    named = {PERSONAL + name: tensor for name, tensor in personal.encoder.items()}
    masks = {MASK + name: mask for name, mask in personal.masks.items()}
    return {**personal.private, **named, **masks}


def _under(prefix: str, state: Params) -> Params:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _phases(
    train_once: Callable[..., tuple[Params, LossSum]], params: Params, masks: Masks, stream: int
) -> tuple[Params, LossSum]:
    """First the kept coordinates, then the others (FedDPA), each with an optimiser of its own."""
    if not any(bool(mask.any()) for mask in masks.values()):
        return train_once(params, stream=stream)
    free = {name: ~mask for name, mask in masks.items()}
    first, _ = train_once(params, stream=stream, frozen=free)
    return train_once(first, stream=stream_seed(stream, "second phase"), frozen=masks)


def _magnitude_loss(
    loss: Magnitude, old: Personal, broadcast: Broadcast
) -> Callable[[Params], Tensor]:
    norm, masks = broadcast.signals.get(TARGET_NORM), old.masks
    anchor = old.encoder if loss.anchor == "local" else broadcast.params

    def extra(params: Params) -> Tensor:
        total = torch.zeros(())
        if loss.keep:
            total = total + keep_local(params, anchor, masks, loss.keep)
        if loss.magnitude and norm is not None:
            total = total + magnitude(
                params, broadcast.params, masks, norm, loss.magnitude, loss.side
            )
        return total

    return extra


def _log_probability(task: Task, private: Params) -> LogProbability:
    def log_probability(params: Params, prefix: Tensor, length: Tensor, target: Tensor) -> Tensor:
        whole = {**params, **private}
        hidden = task.apply(whole, prefix[None], None)[0]
        last = hidden.index_select(0, (length - 1).reshape(1))[0]
        logits = whole[ITEMS][1:] @ last
        return torch.log_softmax(logits, 0).index_select(0, (target - 1).reshape(1))[0]

    return log_probability


def _server_update(
    aggregation: str, step: ServerStep
) -> Callable[[ServerState, Reply], ServerState]:
    def server_update(server: ServerState, reply: Reply) -> ServerState:
        mean = reply.params
        if aggregation == "count":
            mean = {
                name: _mean_of_unmasked(old, mean[name], mean[UNMASKED + name])
                for name, old in server.params.items()
            }
        signals = {**server.signals, TARGET_NORM: median(reply.norms)}
        return replace(step(server, mean), signals=signals)

    return server_update


def _mean_of_unmasked(old: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    """``share``: weight of the clients that did not mask a coordinate; unchanged where it is 0."""
    return torch.where(share > 0, old + (mean - old) / share.clamp(min=1e-12), old)


def _reply_shapes(shapes: Shapes, aggregation: str) -> Shapes:
    if aggregation == "zero":
        return shapes
    return {**shapes, **{UNMASKED + name: shape for name, shape in shapes.items()}}
