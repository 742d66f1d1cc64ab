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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfsr_core.algorithms.fed_avg import fed_avg, item_variants, loss_metrics
from pfsr_core.algorithms.server_optimizers import PLAIN_MEAN, Averaging, ServerStep
from pfsr_core.algorithms.spec import AlgorithmSpec
from pfsr_core.algorithms.variable_response import MaskRule, response_masks
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import (
    Broadcast,
    ClientSide,
    ClientUpdate,
    FederatedAlgorithm,
    Personalization,
    Reply,
    ServerState,
)
from pfsr_core.params import Params, Shapes, distance
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.fields import setting
from pfsr_core.training.batched import train_clients
from pfsr_core.training.fisher import (
    Masks,
    empty_masks,
    kept_share,
    merge_by_mask,
    minmax_mask,
    quantile_mask,
)
from pfsr_core.training.local import ExtraLoss, Job, LocalTraining, LossSum
from pfsr_core.training.losses import keep_local, magnitude
from pfsr_core.training.task import Task

PERSONAL = "personal/"
MASK = "mask/"
UNMASKED = "unmasked/"
TARGET_NORM = "target-norm"


@dataclass(frozen=True)
class PFSRSettings:
    """The Fisher mask, what is served, and the loss that holds both parts of the encoder."""

    mask_mode: str = setting(
        "quantile",
        "which coordinates of the encoder stay local: quantile, a share "
        "algorithm.pfsr.rho of every tensor; minmax, those whose scaled Fisher information is "
        "above algorithm.pfsr.fisher-threshold; none",
        choices=("quantile", "minmax", "none"),
    )
    rho: float = setting(
        0.25,
        "share of every encoder tensor that stays local with algorithm.pfsr.mask-mode = 'quantile'",
        low=0.0,
        high=1.0,
    )
    fisher_threshold: float = setting(
        0.4,
        "Fisher information, scaled to [0, 1], above which a coordinate stays local with "
        "algorithm.pfsr.mask-mode = 'minmax'",
        low=0.0,
        high=1.0,
    )
    fisher_samples: int = setting(
        64, "number of (prefix, target) samples that Fisher information is estimated from", low=1
    )
    serve: str = setting(
        "merged",
        "encoder that a client recommends with: merged, its local coordinates in the shared "
        "encoder, as its next round would start; personal, as its last training left it",
        choices=("merged", "personal"),
    )
    anchor: str = setting(
        "local",
        "what the loss holds local coordinates to: local, the client's last encoder; global, the "
        "shared one",
        choices=("local", "global"),
    )
    anchor_strength: float = setting(
        0.1, "weight lambda1 of the loss that holds local coordinates to their anchor", low=0.0
    )
    magnitude_strength: float = setting(
        0.05, "weight lambda2 of the loss on the norm of the shared coordinates' update", low=0.0
    )
    magnitude_side: str = setting(
        "above",
        "which update norms the loss pulls to their median in the last round: above, only larger "
        "ones; both, smaller ones too, as in FedDPA, where norms cannot shrink as training ends",
        choices=("above", "both"),
    )
    two_phases: bool = setting(
        False, "train the local coordinates of the encoder first and then the others, as in FedDPA"
    )
    aggregation: str = setting(
        "zero",
        "how the server averages a coordinate that a client kept local: zero, as no change; "
        "count, over the other clients only",
        choices=("zero", "count"),
    )

    @property
    def mask_rule(self) -> MaskRule | None:
        """The rule that ``mask_mode`` names; None masks nothing."""
        if self.mask_mode == "none":
            return None
        if self.mask_mode == "minmax":
            return lambda fisher: minmax_mask(fisher, self.fisher_threshold)
        return lambda fisher: quantile_mask(fisher, self.rho)


@dataclass(frozen=True)
class Personal:
    """What a client keeps: its encoder, the private names, and the mask of the next round."""

    encoder: Params
    private: Params
    masks: Masks


class Trained(NamedTuple):
    """What a client keeps after its training, the masks it trained with, and its losses."""

    personal: Personal
    masks: Masks
    losses: LossSum


def pfsr(
    task: Task,
    training: LocalTraining,
    settings: PFSRSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """PFSR over a task whose item table is private or shared."""
    base, serves_personal = fed_avg(task, training), settings.serve == "personal"

    def train_all(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Trained]:
        shared, term = broadcast.params, _magnitude_term(settings, broadcast)
        before = [split_state(state, shared) for state in states]
        jobs = [
            Job(
                params={**merge_by_mask(old.masks, old.encoder, shared), **old.private},
                data=data,
                stream=stream_seed(training.seed, "client", data.client, broadcast.round),
                extra_loss=ExtraLoss(term, {"masks": old.masks, "encoder": old.encoder}),
            )
            for old, data in zip(before, datasets, strict=True)
        ]
        train_jobs = partial(train_clients, task, training.in_round(broadcast.round))
        masks = [old.masks for old in before]
        results = _phases(train_jobs, jobs, masks) if settings.two_phases else train_jobs(jobs)
        next_masks = response_masks(
            task,
            training,
            [params for params, _ in results],
            jobs,
            num_samples=settings.fisher_samples,
            mask_of=settings.mask_rule,
        )
        return [
            Trained(Personal(*task.partition.split(params), next_mask), mask, losses)
            for (params, losses), next_mask, mask in zip(results, next_masks, masks, strict=True)
        ]

    def updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        trained = train_all(broadcast, states, datasets)
        return [update_of(broadcast, *pair) for pair in zip(trained, datasets, strict=True)]

    def update_of(broadcast: Broadcast, trained: Trained, data: ClientDataset) -> ClientUpdate:
        shared, (personal, masks, losses) = broadcast.params, trained
        reply = {
            name: torch.where(masks[name], shared[name], personal.encoder[name]) for name in shared
        }
        norm = float(distance(reply, shared))
        if settings.aggregation == "count":
            reply |= {UNMASKED + name: (~mask).float() for name, mask in masks.items()}
        mask_ratios = {f"mask-ratio/{name}": share for name, share in kept_share(masks).items()}
        return ClientUpdate(
            params=reply,
            weight=float(data.num_interactions) ** averaging.weight_power,
            metrics={**loss_metrics(losses), **mask_ratios, "clients": 1.0},
            state=join_state(personal, whole=serves_personal),
            norm=norm,
        )

    def model(shared: Params, state: Params) -> Params:
        own = split_state(state, shared)
        if serves_personal:
            return {**own.encoder, **own.private}
        return {**merge_by_mask(own.masks, own.encoder, shared), **own.private}

    def finetunes(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[Params]:
        trained = train_all(broadcast, states, datasets)
        return [join_state(result.personal, whole=serves_personal) for result in trained]

    def averaged_model(shared: Params, state: Params) -> Params:
        return {**shared, **split_state(state, shared).private}

    return FederatedAlgorithm(
        client=ClientSide(
            init=base.client.init,
            updates=updates,
            reply_shapes=_reply_shapes(base.client.reply_shapes, settings.aggregation),
            finetunes=finetunes,
        ),
        server=replace(base.server, update=_server_update(settings.aggregation, averaging.step)),
        personalization=Personalization(model, item_variants(task, averaged_model)),
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
    settings: PFSRSettings, broadcast: Broadcast
) -> Callable[[Params, Mapping[str, Params]], Tensor]:
    norm, shared = broadcast.signals.get(TARGET_NORM), broadcast.params

    def term(params: Params, context: Mapping[str, Params]) -> Tensor:
        total, masks = torch.zeros(()), context["masks"]
        if settings.anchor_strength:
            anchor = context["encoder"] if settings.anchor == "local" else shared
            total = total + keep_local(params, anchor, masks, settings.anchor_strength)
        if settings.magnitude_strength and norm is not None:
            strength, side = settings.magnitude_strength, settings.magnitude_side
            total = total + magnitude(
                params, shared, masks, norm=norm, strength=strength, side=side
            )
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


PFSR = AlgorithmSpec(pfsr, PFSRSettings)
