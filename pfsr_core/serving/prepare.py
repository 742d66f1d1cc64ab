"""From a trained model to the value that is served and saved."""

from __future__ import annotations

from pfsr_core.assembly.data import FederatedDataset
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import pooled_vectors
from pfsr_core.params import Params
from pfsr_core.serving.served_model import ModelOrigin, Served, ServedClient, ServedItems


def served_model(
    assembly: Assembly,
    shared_params: Params,
    settings: Settings,
    federation: FederatedDataset,
    *,
    run_name: str,
    round_: int,
) -> Served:
    """A model without its clients, which :func:`served_client` makes one by one.

    Args:
        assembly: The assembled model.
        shared_params: The shared parameters.
        settings: Settings that name the model's own algorithm.
        federation: Where its items and their titles are from.
        run_name: Name of the run.
        round_: The round of the shared parameters.
    """
    catalogue = federation.catalogue
    return Served(
        origin=ModelOrigin(
            run=run_name,
            algorithm=settings.algorithm.name,
            round=round_,
            fingerprint=assembly.fingerprint,
            settings=flat_settings(settings),
        ),
        items=ServedItems(
            ids=federation.split.item_ids,
            titles=federation.interactions.titles,
            texts=catalogue.texts if assembly.vectors_digest else (),
            vectors=pooled_vectors(settings.model, catalogue),
        ),
        shared=shared_params,
    )


def served_client(
    assembly: Assembly, client_data: ClientDataset, client_state: Params
) -> ServedClient:
    """A client with its whole histories, and their times where the model reads times."""
    user_histories = {user.user: user.all_items.tolist() for user in client_data.users}
    user_times = {user.user: user.times.tolist() for user in client_data.users if len(user.times)}
    return ServedClient(
        client_state, user_histories, user_times if assembly.task.model.reads_times else {}
    )
