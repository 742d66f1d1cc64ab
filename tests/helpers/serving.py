"""What a node installs, without a node."""

from __future__ import annotations

from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import run
from pfsr_core.serving.node_store import Served, ServedClient


def served_after_two_rounds(
    settings: Settings, federation: FederatedDataset, assembly: Assembly
) -> Served:
    """The whole federation as one node serves it."""
    server, states = run(assembly.algorithm, federation.clients, rounds=2, seed=0)
    return Served(
        run="tiny",
        algorithm=settings.algorithm.name,
        round=2,
        fingerprint=assembly.fingerprint,
        settings=flat_settings(settings),
        shared=server.params,
        item_ids=federation.split.item_ids,
        titles=federation.interactions.titles,
        texts=federation.catalogue.texts,
        clients={
            data.client: ServedClient(
                states[data.client],
                {user.user: user.all_items.tolist() for user in data.users},
                {user.user: user.times.tolist() for user in data.users},
            )
            for data in federation.clients
        },
    )
