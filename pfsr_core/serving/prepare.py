"""From a trained model to the value that is served and saved."""

from __future__ import annotations

from pfsr_core.assembly.data import Federation
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import pooled_vectors
from pfsr_core.params import Params
from pfsr_core.serving.served_model import ModelOrigin, Served, ServedClient, ServedItems


def served_model(
    assembly: Assembly,
    shared: Params,
    settings: Settings,
    federation: Federation,
    *,
    run: str,
    round_: int,
) -> Served:
    """A model without its clients, which :func:`served_client` makes one by one.

    Args:
        assembly: The assembled model.
        shared: The shared parameters.
        settings: Settings that name the model's own algorithm.
        federation: Where its items and their titles are from.
        run: Name of the run.
        round_: The round of the shared parameters.
    """
    catalogue = federation.catalogue
    return Served(
        origin=ModelOrigin(
            run=run,
            algorithm=settings.algorithm.name,
            round=round_,
            fingerprint=assembly.fingerprint,
            settings=flat_settings(settings),
        ),
        items=ServedItems(
            ids=federation.split.item_ids,
            titles=federation.interactions.titles,
            texts=catalogue.texts if assembly.vectors_digest else (),
            vectors=pooled_vectors(settings, catalogue),
        ),
        shared=shared,
    )


def served_client(assembly: Assembly, data: ClientDataset, state: Params) -> ServedClient:
    """A client with its whole histories, and their times where the model reads times."""
    histories = {user.user: user.full.tolist() for user in data.users}
    times = {user.user: user.times.tolist() for user in data.users if len(user.times)}
    return ServedClient(state, histories, times if assembly.task.reads_times else {})
