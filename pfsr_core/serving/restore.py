"""From what a store holds to objects that compute: the assembled model, and a client's data."""

from __future__ import annotations

from functools import lru_cache
from threading import get_ident
from typing import Any

import numpy as np

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import with_catalogue
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.client_dataset import ClientDataset, ItemArray, UserHistory, unknown_times
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.serving.served_model import RecommendationError, Served
from pfsr_core.serving.users import HELD_OUT


def served_assembly(served: Served) -> Assembly:
    """The assembled model, made from the settings that are stored with it.

    Raises:
        RecommendationError: This version makes another model of these settings.
    """
    origin, items = served.origin, served.items
    catalogue = ItemCatalogue(tuple(items.ids), tuple(items.texts), vectors=items.vectors)
    assembly = _assembled(tuple(sorted(origin.settings.items())), catalogue, get_ident())
    if assembly.fingerprint != origin.fingerprint:
        raise RecommendationError(
            f"the served model {origin.fingerprint} is not the one that this version makes of its "
            f"settings ({assembly.fingerprint}). Fix: serve with the version that trained it, and "
            f"with its file of item vectors where model.item-vectors names one."
        )
    return assembly


@lru_cache(maxsize=8)
def _assembled(
    setting_pairs: tuple[tuple[str, Any], ...], catalogue: ItemCatalogue, _thread: int
) -> Assembly:
    """Cached for the life of the process: assembling takes longer than an answer from a memory.

    Each thread has its own: a model's parameters are put into its module while it computes.
    """
    return assemble(parse_settings(dict(setting_pairs)), catalogue)


def served_data(served: Served, client_name: str) -> ClientDataset:
    """The client's data as they were split for training, and the catalogue that it can rank."""
    stored_client = served.clients[client_name]
    users = tuple(
        UserHistory(
            user_id,
            np.array(item_codes[:-HELD_OUT], np.int64),
            valid=item_codes[-2],
            test=item_codes[-1],
            times=np.array(stored_client.times[user_id], np.int64)
            if user_id in stored_client.times
            else unknown_times(),
        )
        for user_id, item_codes in stored_client.histories.items()
        if len(item_codes) > HELD_OUT
    )
    client_data = ClientDataset(client_name, users, tuple(served.items.ids), served.secret)
    return with_catalogue(parse_settings(served.origin.settings), client_data)


def stored_history(served: Served, client_name: str, user_id: str) -> tuple[ItemArray, ItemArray]:
    """Item codes of a user and their seconds: of the training data, then what was added since.

    There are no seconds where those of the training data are not known.
    """
    stored_client = served.clients[client_name]
    added_items = served.users.added(client_name, user_id) if served.users else []
    history = [*stored_client.histories[user_id], *(item_code for item_code, _ in added_items)]
    times = (
        [*stored_client.times[user_id], *(added_at for _, added_at in added_items)]
        if user_id in stored_client.times
        else []
    )
    return np.array(history, np.int64), np.array(times, np.int64)
