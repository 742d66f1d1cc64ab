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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import fed_avg, item_variants, loss_metrics
from pfsr_core.algorithms.server_optimizers import ServerStep, average
from pfsr_core.algorithms.variable_response import Response, response_masks
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientUpdate,
    FederatedAlgorithm,
    Reply,
    ServerState,
)
from pfsr_core.params import Params, Shapes, distance
from pfsr_core.randomness import stream_seed
from pfsr_core.training.batched import train_clients
from pfsr_core.training.fisher import Masks, empty_masks, kept_share, merge_by_mask
from pfsr_core.training.local import ExtraLoss, Job, LocalTraining, LossSum
from pfsr_core.training.losses import keep_local, magnitude
from pfsr_core.training.task import Task

FISHER_MASK = Response()
PERSONAL = "personal/"
MASK = "mask/"
UNMASKED = "unmasked/"
TARGET_NORM = "target-norm"


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


Trained = tuple[Personal, Masks, LossSum]
"""What a client keeps after its training, the masks it trained with, and its losses."""


def pfsr(
    task: Task,
    training: LocalTraining,
    *,
    response: Response = FISHER_MASK,
    loss: Magnitude = Magnitude(),
    aggregation: str = "zero",
    step: ServerStep = average,
    weight_power: float = 1.0,
) -> FederatedAlgorithm:
    """PFSR over a task whose item table is private or shared."""
    base, whole = fed_avg(task, training), response.serve == "personal"

    def local(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Trained]:
        shared, term = broadcast.params, _magnitude_term(loss, broadcast)
        olds = [split_state(state, shared) for state in states]
        jobs = [
            Job(
                params={**merge_by_mask(old.masks, old.encoder, shared), **old.private},
                data=data,
                stream=stream_seed(training.seed, "client", data.client, broadcast.round),
                extra_loss=ExtraLoss(term, {"masks": old.masks, "encoder": old.encoder}),
            )
            for old, data in zip(olds, datasets, strict=True)
        ]
        train_all = partial(train_clients, task, training.in_round(broadcast.round))
        masks = [old.masks for old in olds]
        found = _phases(train_all, jobs, masks) if loss.two_phases else train_all(jobs)
        next_masks = response_masks(task, training, response, [whole for whole, _ in found], jobs)
        return [
            (Personal(*task.partition.split(whole), next_mask), mask, losses)
            for (whole, losses), next_mask, mask in zip(found, next_masks, masks, strict=True)
        ]

    def client_updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        trained = local(broadcast, states, datasets)
        return [update(broadcast, *one, data) for one, data in zip(trained, datasets, strict=True)]

    def update(
        broadcast: Broadcast, new: Personal, masks: Masks, losses: LossSum, data: ClientDataset
    ) -> ClientUpdate:
        shared = broadcast.params
        reply = {name: torch.where(masks[name], shared[name], new.encoder[name]) for name in shared}
        norm = float(distance(reply, shared))
        if aggregation == "count":
            reply |= {UNMASKED + name: (~mask).float() for name, mask in masks.items()}
        mask_ratios = {f"mask-ratio/{name}": share for name, share in kept_share(masks).items()}
        return ClientUpdate(
            params=reply,
            weight=float(data.num_interactions) ** weight_power,
            metrics={**loss_metrics(losses), **mask_ratios, "clients": 1.0},
            state=join_state(new, whole=whole),
            norm=norm,
        )

    def personalize(shared: Params, state: Params) -> Params:
        own = split_state(state, shared)
        if response.serve == "personal":
            return {**own.encoder, **own.private}
        return {**merge_by_mask(own.masks, own.encoder, shared), **own.private}

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        trained = local(broadcast, states, datasets)
        return [join_state(new, whole=whole) for new, _, _ in trained]

    def averaged(shared: Params, state: Params) -> Params:
        return {**shared, **split_state(state, shared).private}

    return replace(
        base,
        views=item_variants(task, averaged),
        client_updates=client_updates,
        server_update=_server_update(aggregation, step),
        personalize=personalize,
        finetunes=finetunes,
        reply_shapes=_reply_shapes(base.reply_shapes, aggregation),
        states_fit_any_round=False,
    )


def split_state(state: Params, shared: Params) -> Personal:
    """A client's state in its parts; before the first participation: ``shared``, nothing kept.

    Of an encoder of which only the kept coordinates are known, the others are those of ``shared``.
    """
    prefixes = (PERSONAL, MASK)
    private = {name: value for name, value in state.items() if not name.startswith(prefixes)}
    if not any(name.startswith(MASK) for name in state):
        return Personal(dict(shared), private, empty_masks(shared))
    masks = {name: _mask_of(state[MASK + name], value) for name, value in shared.items()}
    encoder = {
        name: _filled(state[PERSONAL + name], masks[name], value) for name, value in shared.items()
    }
    return Personal(encoder, private, masks)


def join_state(personal: Personal, *, whole: bool) -> Params:
    """Undoes :func:`split_state`: masks as packed bits, eight to a byte.

    The encoder is kept ``whole``, or its kept coordinates alone: no more is ever read of it where
    it is merged with what the server sends.
    """
    masks, encoder = personal.masks, personal.encoder
    values = {name: t if whole else t[masks[name]] for name, t in encoder.items()}
    bits = {name: torch.from_numpy(np.packbits(mask.numpy())) for name, mask in masks.items()}
    return {
        **personal.private,
        **{PERSONAL + name: tensor for name, tensor in values.items()},
        **{MASK + name: tensor for name, tensor in bits.items()},
    }


def _mask_of(bits: Tensor, like: Tensor) -> Tensor:
    flags = np.unpackbits(bits.numpy(), count=like.numel()).astype(bool)
    return torch.from_numpy(flags).reshape(like.shape)


def _filled(values: Tensor, mask: Tensor, rest: Tensor) -> Tensor:
    """All of a tensor, of which ``values`` may hold the entries under the mask alone."""
    if values.shape == rest.shape:
        return values
    return rest.masked_scatter(mask, values)


def _phases(
    train_all: Callable[[Sequence[Job]], list[tuple[Params, LossSum]]],
    jobs: Sequence[Job],
    masks: Sequence[Masks],
) -> list[tuple[Params, LossSum]]:
    """First the kept coordinates, then the others (FedDPA), each with an optimiser of its own."""
    kept = [i for i, mask in enumerate(masks) if any(bool(part.any()) for part in mask.values())]
    free = {i: {name: ~part for name, part in masks[i].items()} for i in kept}
    first = train_all([replace(jobs[i], frozen=free[i]) for i in kept])
    second = dict(enumerate(jobs))
    for i, (params, _) in zip(kept, first, strict=True):
        stream = stream_seed(jobs[i].stream, "second phase")
        second[i] = replace(jobs[i], params=params, stream=stream, frozen=masks[i])
    return train_all(list(second.values()))


def _magnitude_term(
    loss: Magnitude, broadcast: Broadcast
) -> Callable[[Params, Mapping[str, Params]], Tensor]:
    norm, shared = broadcast.signals.get(TARGET_NORM), broadcast.params

    def term(params: Params, context: Mapping[str, Params]) -> Tensor:
        total, masks = torch.zeros(()), context["masks"]
        if loss.keep:
            anchor = context["encoder"] if loss.anchor == "local" else shared
            total = total + keep_local(params, anchor, masks, loss.keep)
        if loss.magnitude and norm is not None:
            total = total + magnitude(params, shared, masks, norm, loss.magnitude, loss.side)
        return total

    return term


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
