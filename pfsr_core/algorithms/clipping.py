"""A bound on what one client changes of any item: its rows, clipped one by one.

    dE[j] <- dE[j] * min(1, max_change / || dE[j] ||_2)

For every algorithm whose reply holds an item table, on the node and before anything is merged, so
that a node's mean is bounded too. It limits how far a client can push an item, and makes what noise
has to cover finite. It hides nothing by itself: clipping keeps the direction of every change, and
the sign of a change separates an item from a negative (:mod:`pfsr_core.algorithms.pfedrec`).
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


def with_row_clipping(algorithm: FederatedAlgorithm, max_change: float) -> FederatedAlgorithm:
    """The same algorithm, no row of whose item table a client changes by more than ``max_change``.

    What a client keeps is not clipped. An algorithm that sends no item table is left as it is.
    """
    if ITEMS not in algorithm.client.reply_shapes:
        return algorithm

    def updates(
        broadcast: Broadcast,
        client_states: Sequence[Params],
        client_datasets: Sequence[ClientDataset],
    ) -> list[ClientUpdate]:
        client_updates = algorithm.client.updates(broadcast, client_states, client_datasets)
        return [_clipped(update, broadcast.params, max_change) for update in client_updates]

    return replace(algorithm, client=replace(algorithm.client, updates=updates))


def clip_rows(sent_table: Tensor, reply_table: Tensor, max_change: float) -> Tensor:
    """Bounds how far every row of an item table is from the one that was sent.

    Args:
        sent_table: The table that the client received (V, D).
        reply_table: The table after its training (V, D).
        max_change: The largest Euclidean norm of a row's change.

    Returns:
        The table with rows at most ``max_change`` from those of ``sent_table``, up to float32
        rounding. Rows within the bound are unchanged, bit for bit; ``reply_table`` itself where all
        are.
    """
    row_changes = torch.linalg.vector_norm(reply_table - sent_table, dim=1)
    changed_rows = torch.nonzero(row_changes > max_change)[:, 0]
    if not len(changed_rows):
        return reply_table
    kept_shares = (max_change / row_changes[changed_rows])[:, None]
    return reply_table.index_copy(
        0,
        changed_rows,
        torch.lerp(sent_table[changed_rows], reply_table[changed_rows], kept_shares),
    )


def _clipped(update: ClientUpdate, sent_params: Params, max_change: float) -> ClientUpdate:
    """The norm that leaves with an update is that of what is sent."""
    clipped_table = clip_rows(sent_params[ITEMS], update.params[ITEMS], max_change)
    if clipped_table is update.params[ITEMS]:
        return update
    clipped_params = {**update.params, ITEMS: clipped_table}
    return replace(
        update,
        params=clipped_params,
        norm=float(distance(select(clipped_params, sent_params), sent_params)),
    )
