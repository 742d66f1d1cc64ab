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
    local_training: LocalTraining,
    settings: PFSRSettings,
    averaging: Averaging = PLAIN_MEAN,
) -> FederatedAlgorithm:
    """PFSR over a task whose item table is private or shared."""
    base_algorithm, serves_personal = fed_avg(task, local_training), settings.serve == "personal"

    def train_all(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Trained]:
        shared_params, loss_term = broadcast.params, _magnitude_term(settings, broadcast)
        previous_states = [
            split_state(client_state, shared_params) for client_state in client_states
        ]
        jobs = [
            Job(
                params={
                    **merge_by_mask(previous_state.masks, previous_state.encoder, shared_params),
                    **previous_state.private,
                },
                data=client_data,
                stream=stream_seed(
                    local_training.seed, "client", client_data.client, broadcast.round
                ),
                extra_loss=ExtraLoss(
                    loss_term, {"masks": previous_state.masks, "encoder": previous_state.encoder}
                ),
            )
            for previous_state, client_data in zip(previous_states, client_datasets, strict=True)
        ]
        train_jobs = partial(train_clients, task, local_training.in_round(broadcast.round))
        client_masks = [previous_state.masks for previous_state in previous_states]
        trained_params = (
            _phases(train_jobs, jobs, client_masks) if settings.two_phases else train_jobs(jobs)
        )
        next_masks = response_masks(
            task,
            local_training,
            [params for params, _ in trained_params],
            jobs,
            num_samples=settings.fisher_samples,
            mask_of=settings.mask_rule,
        )
        return [
            Trained(Personal(*task.partition.split(params), next_mask), client_mask, losses)
            for (params, losses), next_mask, client_mask in zip(
                trained_params, next_masks, client_masks, strict=True
            )
        ]

    def updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        trained_clients = train_all(broadcast, client_states, client_datasets)
        return [
            update_of(broadcast, trained_client, client_data)
            for trained_client, client_data in zip(trained_clients, client_datasets, strict=True)
        ]

    def update_of(
        broadcast: Broadcast, trained_client: Trained, client_data: ClientDataset
    ) -> ClientUpdate:
        shared_params, (personal, masks, losses) = broadcast.params, trained_client
        reply_params = {
            tensor_name: torch.where(
                masks[tensor_name], shared_params[tensor_name], personal.encoder[tensor_name]
            )
            for tensor_name in shared_params
        }
        update_norm = float(distance(reply_params, shared_params))
        if settings.aggregation == "count":
            reply_params |= {
                UNMASKED + tensor_name: (~mask).float() for tensor_name, mask in masks.items()
            }
        mask_ratios = {
            f"mask-ratio/{tensor_name}": kept_ratio
            for tensor_name, kept_ratio in kept_share(masks).items()
        }
        return ClientUpdate(
            params=reply_params,
            weight=float(client_data.num_interactions) ** averaging.weight_power,
            metrics={**loss_metrics(losses), **mask_ratios, "clients": 1.0},
            state=join_state(personal, whole=serves_personal),
            norm=update_norm,
        )

    def model(shared_params: Params, client_state: Params) -> Params:
        own_parts = split_state(client_state, shared_params)
        if serves_personal:
            return {**own_parts.encoder, **own_parts.private}
        return {
            **merge_by_mask(own_parts.masks, own_parts.encoder, shared_params),
            **own_parts.private,
        }

    def finetunes(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[Params]:
        trained_clients = train_all(broadcast, client_states, client_datasets)
        return [
            join_state(trained_client.personal, whole=serves_personal)
            for trained_client in trained_clients
        ]

    def averaged_model(shared_params: Params, client_state: Params) -> Params:
        return {**shared_params, **split_state(client_state, shared_params).private}

    return FederatedAlgorithm(
        client=ClientSide(
            init=base_algorithm.client.init,
            updates=updates,
            reply_shapes=_reply_shapes(base_algorithm.client.reply_shapes, settings.aggregation),
            finetunes=finetunes,
        ),
        server=replace(
            base_algorithm.server, update=_server_update(settings.aggregation, averaging.step)
        ),
        personalization=Personalization(model, item_variants(task, averaged_model)),
    )


def split_state(client_state: Params, shared_params: Params) -> Personal:
    """A client's private state in its parts.

    Args:
        client_state: As :func:`join_state` makes it, or a first state without encoder and mask.
        shared_params: What the server sent. An encoder of which only the kept coordinates are
            stored has these at all other coordinates.

    Returns:
        Encoder, private tensors and masks; before the first participation the shared encoder and
        empty masks.
    """
    prefixes = (PERSONAL, MASK)
    private_params = {
        tensor_name: value
        for tensor_name, value in client_state.items()
        if not tensor_name.startswith(prefixes)
    }
    if not any(tensor_name.startswith(MASK) for tensor_name in client_state):
        return Personal(dict(shared_params), private_params, empty_masks(shared_params))
    masks = {
        tensor_name: _mask_of(client_state[MASK + tensor_name], value)
        for tensor_name, value in shared_params.items()
    }
    encoder = {
        tensor_name: _filled(client_state[PERSONAL + tensor_name], masks[tensor_name], value)
        for tensor_name, value in shared_params.items()
    }
    return Personal(encoder, private_params, masks)


def join_state(personal: Personal, *, whole: bool) -> Params:
    """Undoes :func:`split_state`: masks as packed bits, eight to a byte.

    The encoder is kept ``whole``, or its kept coordinates alone: no more is ever read of it where
    it is merged with what the server sends.
    """
    masks, encoder = personal.masks, personal.encoder
    kept_values = {
        tensor_name: t if whole else t[masks[tensor_name]] for tensor_name, t in encoder.items()
    }
    packed_masks = {
        tensor_name: torch.from_numpy(np.packbits(mask.numpy()))
        for tensor_name, mask in masks.items()
    }
    return {
        **personal.private,
        **{PERSONAL + tensor_name: tensor for tensor_name, tensor in kept_values.items()},
        **{MASK + tensor_name: tensor for tensor_name, tensor in packed_masks.items()},
    }


def _mask_of(packed_bits: Tensor, shared_tensor: Tensor) -> Tensor:
    mask_flags = np.unpackbits(packed_bits.numpy(), count=shared_tensor.numel()).astype(bool)
    return torch.from_numpy(mask_flags).reshape(shared_tensor.shape)


def _filled(kept_values: Tensor, mask: Tensor, shared_tensor: Tensor) -> Tensor:
    """All of a tensor, of which ``kept_values`` may hold the entries under the mask alone."""
    if kept_values.shape == shared_tensor.shape:
        return kept_values
    return shared_tensor.masked_scatter(mask, kept_values)


def _phases(
    train_jobs: Callable[[Sequence[Job]], list[tuple[Params, LossSum]]],
    jobs: Sequence[Job],
    masks: Sequence[Masks],
) -> list[tuple[Params, LossSum]]:
    """First the kept coordinates, then the others (FedDPA), each with an optimiser of its own."""
    masked_jobs = [
        i
        for i, mask in enumerate(masks)
        if any(bool(tensor_mask.any()) for tensor_mask in mask.values())
    ]
    free_masks = {
        i: {tensor_name: ~tensor_mask for tensor_name, tensor_mask in masks[i].items()}
        for i in masked_jobs
    }
    first_results = train_jobs([replace(jobs[i], frozen=free_masks[i]) for i in masked_jobs])
    second_jobs = dict(enumerate(jobs))
    for i, (params, _) in zip(masked_jobs, first_results, strict=True):
        phase_stream = stream_seed(jobs[i].stream, "second phase")
        second_jobs[i] = replace(jobs[i], params=params, stream=phase_stream, frozen=masks[i])
    return train_jobs(list(second_jobs.values()))


def _magnitude_term(
    settings: PFSRSettings, broadcast: Broadcast
) -> Callable[[Params, Mapping[str, Params]], Tensor]:
    target_norm, shared_params = broadcast.signals.get(TARGET_NORM), broadcast.params

    def term(params: Params, context: Mapping[str, Params]) -> Tensor:
        total_loss, masks = torch.zeros(()), context["masks"]
        if settings.anchor_strength:
            anchor_params = context["encoder"] if settings.anchor == "local" else shared_params
            total_loss = total_loss + keep_local(
                params, anchor_params, masks, settings.anchor_strength
            )
        if settings.magnitude_strength and target_norm is not None:
            strength, side = settings.magnitude_strength, settings.magnitude_side
            total_loss = total_loss + magnitude(
                params, shared_params, masks, norm=target_norm, strength=strength, side=side
            )
        return total_loss

    return term


def _server_update(
    aggregation: str, step: ServerStep
) -> Callable[[ServerState, Reply], ServerState]:
    def server_update(server_state: ServerState, mean_reply: Reply) -> ServerState:
        mean_params = mean_reply.params
        if aggregation == "count":
            mean_params = {
                tensor_name: _mean_of_unmasked(
                    old_tensor, mean_params[tensor_name], mean_params[UNMASKED + tensor_name]
                )
                for tensor_name, old_tensor in server_state.params.items()
            }
        next_signals = {**server_state.signals, TARGET_NORM: median(mean_reply.norms)}
        return replace(step(server_state, mean_params), signals=next_signals)

    return server_update


def _mean_of_unmasked(old_tensor: Tensor, mean_tensor: Tensor, unmasked_share: Tensor) -> Tensor:
    """The mean over the clients that did not mask a coordinate.

    ``unmasked_share``: their share of the weight; where it is 0 the coordinate is unchanged.
    """
    return torch.where(
        unmasked_share > 0,
        old_tensor + (mean_tensor - old_tensor) / unmasked_share.clamp(min=1e-12),
        old_tensor,
    )


def _reply_shapes(shapes: Shapes, aggregation: str) -> Shapes:
    if aggregation == "zero":
        return shapes
    return {**shapes, **{UNMASKED + tensor_name: shape for tensor_name, shape in shapes.items()}}


PFSR = AlgorithmSpec(pfsr, PFSRSettings)
