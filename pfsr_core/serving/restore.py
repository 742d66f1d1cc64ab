"""From what a store holds to objects that compute: the assembled model, and a client's data."""

from __future__ import annotations

from functools import lru_cache
from threading import get_ident
from typing import Any

import numpy as np

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import with_catalogue
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.client_dataset import ClientDataset, ItemArray, UserHistory, no_times
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import Catalogue
from pfsr_core.serving.served_model import RecommendationError, Served
from pfsr_core.serving.users import HELD_OUT


def served_assembly(served: Served) -> Assembly:
    """The assembled model, made from the settings that are stored with it.

    Raises:
        RecommendationError: This version makes another model of these settings.
    """
    origin, items = served.origin, served.items
    catalogue = Catalogue(tuple(items.ids), tuple(items.texts), vectors=items.vectors)
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
    settings: tuple[tuple[str, Any], ...], catalogue: Catalogue, _thread: int
) -> Assembly:
    """Cached for the life of the process: assembling takes longer than an answer from a memory.

    Each thread has its own: a model's parameters are put into its module while it computes.
    """
    return assemble(parse_settings(dict(settings)), catalogue)


def served_data(served: Served, client: str) -> ClientDataset:
    """The client's data as they were split for training, and the catalogue that it can rank."""
    part = served.clients[client]
    users = tuple(
        UserHistory(
            user,
            np.array(codes[:-HELD_OUT], np.int64),
            valid=codes[-2],
            test=codes[-1],
            times=np.array(part.times[user], np.int64) if user in part.times else no_times(),
        )
        for user, codes in part.histories.items()
        if len(codes) > HELD_OUT
    )
    data = ClientDataset(client, users, tuple(served.items.ids), served.secret)
    return with_catalogue(parse_settings(served.origin.settings), data)


def stored_history(served: Served, client: str, user: str) -> tuple[ItemArray, ItemArray]:
    """Item codes of a user and their seconds: of the training data, then what was added since.

    There are no seconds where those of the training data are not known.
    """
    part, new = served.clients[client], served.users.added(client, user) if served.users else []
    history = [*part.histories[user], *(code for code, _ in new)]
    times = [*part.times[user], *(time for _, time in new)] if user in part.times else []
    return np.array(history, np.int64), np.array(times, np.int64)
