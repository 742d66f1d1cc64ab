"""PFSR: Fisher-masked personalization and the dynamic magnitude loss over a shared encoder.

Provenance. The item table stays on the client, an encoder is averaged, informative coordinates stay
local and a dynamic magnitude loss balances the two: the abstract and summaries of PFSR
(arXiv 2603.22349). The form of mask, merge, two phases and constraint: FedDPA (Yang et al.,
NeurIPS 2023). The quantile mask, the dynamic C_t (median of the clients' last update norms) and the
count aggregation are this project's own.

    client  F = diagonal Fisher of theta_k_old;  M = mask(F)              variable response mechanism
            theta <- M * theta_k_old + (1 - M) * theta_g
            phase 1 trains the kept coordinates, phase 2 the others; the item table trains in both
            L = CE + lambda1/2 sum_j M_j (theta_j - theta_k_old_j)^2
                   + lambda2/2 ( || (1 - M)(theta - theta_g) ||_2 - C_t )^2
            reply theta_g + (1 - M)(theta - theta_g)
    server  weighted mean;  C_{t+1} = median of the update norms

A client's first participation has M = 0: it is federated averaging. The personal encoder is kept in
the client's state under names that begin with ``personal/``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import FINETUNE_ROUND, fed_avg, loss_metrics
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import Broadcast, ClientUpdate, FederatedAlgorithm, Reply, ServerState
from pfsr_core.fisher import (
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
from pfsr_core.models.next_item import ITEMS
from pfsr_core.params import Params, Shapes, distance

PERSONAL = "personal/"
UNMASKED = "unmasked/"
TARGET_NORM = "target-norm"


@dataclass(frozen=True)
class Response:
    """The variable response mechanism. ``rho``: kept share of a tensor; ``tau``: FedDPA's bar."""

    mask_mode: Literal["quantile", "minmax", "none"] = "quantile"
    rho: float = 0.25
    tau: float = 0.4
    fisher_samples: int = 256


@dataclass(frozen=True)
class Magnitude:
    """The dynamic magnitude loss. ``anchor``: what the kept part is held to, and how strongly."""

    keep: float = 0.1
    magnitude: float = 0.05
    two_phases: bool = True


def pfsr(
    task: Task,
    training: LocalTraining,
    *,
    response: Response = Response(),
    loss: Magnitude = Magnitude(),
    aggregation: Literal["zero", "count"] = "zero",
) -> FederatedAlgorithm:
    """PFSR over a task whose item table is private or shared."""
    base = fed_avg(task, training)
    shared_names = list(base.reply_shapes)

    def masks_of(params: Params, private: Params, data: ClientDataset, stream: int) -> Masks:
        if response.mask_mode == "none" or data.num_interactions <= len(data.users):
            return empty_masks(params)
        generator = torch.Generator().manual_seed(stream)
        samples = prefix_samples(data, training.max_length, response.fisher_samples, generator)
        log_probability = _log_probability(task, private, task.candidates(data))
        fisher = diagonal_fisher(log_probability, params, samples)
        if response.mask_mode == "minmax":
            return minmax_mask(fisher, response.tau)
        return quantile_mask(fisher, response.rho)

    def local(broadcast: Broadcast, state: Params, data: ClientDataset):  # type: ignore[no-untyped-def]
        stream = stream_seed(training.seed, "client", data.client, broadcast.round)
        old, private = split_state(state)
        shared = broadcast.params
        masks = masks_of(old, private, data, stream) if old else empty_masks(shared)
        old = old or shared
        merged = {**merge_by_mask(masks, old, shared), **private}
        extra = _magnitude_loss(loss, masks, old, broadcast)
        trained, losses = _phases(task, training, loss, merged, data, masks, extra, stream)
        return trained, masks, losses

    def client_update(broadcast: Broadcast, state: Params, data: ClientDataset) -> ClientUpdate:
        trained, masks, losses = local(broadcast, state, data)
        personal, private = task.partition.split(trained)
        shared = broadcast.params
        reply = {name: torch.where(masks[name], shared[name], personal[name]) for name in shared}
        norm = float(distance(reply, shared))
        if aggregation == "count":
            reply |= {UNMASKED + name: (~mask).float() for name, mask in masks.items()}
        kept = {f"kept/{name}": share for name, share in kept_share(masks).items()}
        return ClientUpdate(
            params=reply,
            weight=float(data.num_interactions),
            metrics={**loss_metrics(losses), **kept, "clients": 1.0},
            state=join_state(personal, private),
            norm=norm,
        )

    def personalize(shared: Params, state: Params) -> Params:
        personal, private = split_state(state)
        return {**shared, **personal, **private}

    def finetune(broadcast: Broadcast, state: Params, data: ClientDataset) -> Params:
        last = replace(broadcast, round=FINETUNE_ROUND)
        trained, _masks, _losses = local(last, state, data)
        return join_state(*task.partition.split(trained))

    return replace(
        base,
        client_update=client_update,
        server_update=_server_update(aggregation),
        personalize=personalize,
        finetune=finetune,
        reply_shapes=_reply_shapes(base.reply_shapes, aggregation, shared_names),
    )


def split_state(state: Params) -> tuple[Params, Params]:
    """(personal encoder under its plain names, the private rest)."""
    personal = {k.removeprefix(PERSONAL): v for k, v in state.items() if k.startswith(PERSONAL)}
    return personal, {k: v for k, v in state.items() if not k.startswith(PERSONAL)}


def join_state(personal: Params, private: Params) -> Params:
    return {**private, **{PERSONAL + name: tensor for name, tensor in personal.items()}}


def _phases(  # type: ignore[no-untyped-def]
    task, training, loss, merged, data, masks, extra, stream
) -> tuple[Params, LossSum]:
    any_kept = any(bool(mask.any()) for mask in masks.values())
    if not (loss.two_phases and any_kept):
        return train(task, training, merged, data, stream=stream, extra_loss=extra)
    free = {name: ~mask for name, mask in masks.items()}
    first, _ = train(task, training, merged, data, stream=stream, extra_loss=extra, frozen=free)
    stream = stream_seed(stream, "second phase")
    return train(task, training, first, data, stream=stream, extra_loss=extra, frozen=masks)


def _magnitude_loss(
    loss: Magnitude, masks: Masks, old: Params, broadcast: Broadcast
) -> Callable[[Params], Tensor]:
    norm = broadcast.signals.get(TARGET_NORM)

    def extra(params: Params) -> Tensor:
        total = torch.zeros(())
        if loss.keep:
            total = total + keep_local(params, old, masks, loss.keep)
        if loss.magnitude and norm is not None:
            total = total + magnitude(params, broadcast.params, masks, norm, loss.magnitude)
        return total

    return extra


def _log_probability(task: Task, private: Params, candidates: Tensor):  # type: ignore[no-untyped-def]
    def log_probability(params: Params, prefix: Tensor, length: Tensor, target: Tensor) -> Tensor:
        whole = {**params, **private}
        hidden = task.apply(whole, prefix[None], False)[0]
        last = hidden.index_select(0, (length - 1).reshape(1))[0]
        logits = whole[ITEMS][candidates] @ last
        label = torch.searchsorted(candidates, target.reshape(1))
        return torch.log_softmax(logits, 0).index_select(0, label)[0]

    return log_probability


def _server_update(aggregation: str) -> Callable[[ServerState, Reply], ServerState]:
    def server_update(server: ServerState, reply: Reply) -> ServerState:
        mean = reply.params
        if aggregation == "count":
            mean = {
                name: _mean_of_unmasked(old, mean[name], mean[UNMASKED + name])
                for name, old in server.params.items()
            }
        signals = {**server.signals, TARGET_NORM: median(reply.norms)}
        return ServerState(mean, server.round + 1, signals, server.slots)

    return server_update


def _mean_of_unmasked(old: Tensor, mean: Tensor, share: Tensor) -> Tensor:
    """``share``: weight of the clients that did not mask a coordinate; unchanged where it is 0."""
    return torch.where(share > 0, old + (mean - old) / share.clamp(min=1e-12), old)


def _reply_shapes(shapes: Shapes, aggregation: str, names: list[str]) -> Shapes:
    if aggregation == "zero":
        return shapes
    return {**shapes, **{UNMASKED + name: shapes[name] for name in names}}
