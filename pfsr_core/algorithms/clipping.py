"""A bound on what one client changes of any item: its rows, clipped one by one.

    dE[j] <- dE[j] * min(1, bound / || dE[j] ||_2)

For every algorithm whose reply holds an item table, on the node and before anything is merged, so
that a node's mean is bounded too. It limits how far a client can push an item, and makes what noise
has to cover finite. It hides nothing by itself: clipping keeps the direction of every change, and
the sign of a change is what tells an item from a negative (:mod:`pfsr_core.algorithms.pfedrec`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import Broadcast, ClientUpdate, FederatedAlgorithm
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, distance, select


def with_row_clipping(algorithm: FederatedAlgorithm, bound: float) -> FederatedAlgorithm:
    """The same algorithm, no row of whose item table a client changes by more than ``bound``.

    What a client keeps is not clipped. An algorithm that sends no item table is left as it is.
    """
    if ITEMS not in algorithm.client.reply_shapes:
        return algorithm

    def updates(
        broadcast: Broadcast, states: Sequence[Params], datasets: Sequence[ClientDataset]
    ) -> list[ClientUpdate]:
        replies = algorithm.client.updates(broadcast, states, datasets)
        return [_clipped(update, broadcast.params, bound) for update in replies]

    return replace(algorithm, client=replace(algorithm.client, updates=updates))


def clip_rows(sent: Tensor, reply: Tensor, bound: float) -> Tensor:
    """``reply`` (V, D) with rows at most ``bound`` from those of ``sent``, up to float32 rounding.

    Rows within the bound are what they were, bit for bit; ``reply`` itself where all are.
    """
    lengths = torch.linalg.vector_norm(reply - sent, dim=1)
    far = torch.nonzero(lengths > bound)[:, 0]
    if not len(far):
        return reply
    shares = (bound / lengths[far])[:, None]
    return reply.index_copy(0, far, torch.lerp(sent[far], reply[far], shares))


def _clipped(update: ClientUpdate, sent: Params, bound: float) -> ClientUpdate:
    """The norm that leaves with an update is that of what is sent."""
    table = clip_rows(sent[ITEMS], update.params[ITEMS], bound)
    if table is update.params[ITEMS]:
        return update
    params = {**update.params, ITEMS: table}
    return replace(update, params=params, norm=float(distance(select(params, sent), sent)))
