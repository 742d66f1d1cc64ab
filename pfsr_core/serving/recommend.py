"""Recommendations out of a node's own store: the served model, one user, no server, no network.

A user of the node is ranked with the model of the user's client and the stored history. Somebody
new may give a few items instead, and is ranked with the model of the node's largest client, or of
the client named. Items of the history are never recommended. Items that are given come without
times: a model that reads times takes the gaps between them for zero.

A user without any history gets the items most frequent in that client's histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import with_catalogue
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.client_dataset import ClientDataset, ItemArray, UserHistory, unknown_times
from pfsr_core.evaluation.scoring import Question, make_scorer, score_from_memory
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.serving.node_store import NodeStore, Served
from pfsr_core.serving.sqlite_file import StateMissingError
from pfsr_core.serving.users import HELD_OUT, weights_digest

MODEL = "model"
POPULARITY = "popularity: no history yet"


class RecommendationError(ValueError):
    """A question that cannot be answered; says what can be asked instead."""


@dataclass(frozen=True)
class Recommendation:
    """``item``: raw id. ``title``: "" where none is known. ``rank`` counts from 1."""

    item: str
    title: str
    score: float
    rank: int


@dataclass(frozen=True)
class Answer:
    """``source``: MODEL or POPULARITY. ``skipped``: given items that the client does not sell."""

    user: str
    client: str
    source: str
    recommendations: tuple[Recommendation, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asker:
    """Who asks: the client whose model answers, the history as codes, and what was skipped.

    ``times``: seconds of the history, empty where they are not known. ``user``: whose stored
    history it is; "" of a history that was given.
    """

    client: str
    history: ItemArray
    skipped: tuple[str, ...] = ()
    times: ItemArray = field(default_factory=unknown_times)
    user: str = ""


def open_served(path: Path, run: str = "") -> Served:
    """The model installed last in the store at ``path``, or that of ``run``.

    Raises RecommendationError without such a file (it is not created), NodeStoreError otherwise.
    """
    _check_file(path)
    return NodeStore(path).served(run)


def served_in(place: Path, run: str = "") -> list[Served]:
    """What each node serves, in the order of their files; nodes without such a model are left out.

    ``place``: a node's store, or a directory of several, as a simulation leaves it. Raises like
    :func:`open_served` where no node has one.
    """
    found: list[Served] = []
    problems: list[StateMissingError] = []
    for path in _stores(place):
        try:
            found.append(open_served(path, run))
        except StateMissingError as problem:
            problems.append(problem)
    if not found:
        raise problems[0]
    return found


def find_served(place: Path, user: str, run: str = "") -> Served:
    """The served model of a node that holds ``user``; of the first node when none does.

    ``place`` and what is raised: see :func:`served_in`.
    """
    served = served_in(place, run)
    return next((one for one in served if user in _users(one)), served[0])


def forget_everywhere(place: Path, user: str) -> int:
    """Takes ``user`` from the stores at ``place``, see ``NodeStore.forget``; of how many models.

    Raises RecommendationError when no store is there, or when none knows the user.
    """
    count = sum(NodeStore(path).forget(user) for path in _stores(place))
    if not count:
        raise RecommendationError(
            f"{place} serves no user {user!r}: nothing was deleted. Fix: write the id as it is in "
            f"the data, and give the store of the node that holds the user."
        )
    return count


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise RecommendationError(
            f"{path}: no such file. Fix: give the node's store, which a finished run leaves in its "
            f"state directory, e.g. .pfsr/state/node-0.sqlite."
        )


def _stores(place: Path) -> list[Path]:
    if not place.is_dir():
        _check_file(place)
        return [place]
    stores = sorted(place.glob("*.sqlite"))
    if not stores:
        raise RecommendationError(
            f"{place} holds no node's store (*.sqlite). Fix: finish a run first, e.g. make run, or "
            f"give --state."
        )
    return stores


def recommend(
    served: Served, user: str, k: int = 10, items: Sequence[str] | None = None, client: str = ""
) -> Answer:
    """The ``k`` best items for ``user``, the best first; ties go to the lower item code.

    ``items`` (raw ids, oldest first) replace the stored history; then the user may be unknown.
    Raises RecommendationError for an unknown user without items, an unknown client, or k < 1.
    """
    check_question(served, k, client)
    asker = _asker(served, user, items, client)
    data = served_data(served, asker.client)
    asker = _sold(data, asker)
    if len(asker.history):
        scores, source = _model_scores(served, asker, data), MODEL
    else:
        scores, source = _item_counts(served, asker.client), POPULARITY
    scores[torch.from_numpy(asker.history)] = -torch.inf
    scores[0] = -torch.inf
    return Answer(user, asker.client, source, _best(served, scores, k), asker.skipped)


def check_question(served: Served, k: int, client: str) -> None:
    """Raises RecommendationError for k < 1 and for a ``client`` that is not here; "" is any."""
    if k < 1:
        raise RecommendationError(f"k = {k}. Fix: ask for at least one item.")
    if client and client not in served.clients:
        known = some(served.clients)
        raise RecommendationError(f"unknown client {client!r}. Fix: choose one of {known}.")


def _asker(served: Served, user: str, items: Sequence[str] | None, client: str) -> Asker:
    home = _home(served, user)
    name = client or home or _largest(served)
    if items is not None:
        codes = {raw: code for code, raw in enumerate(served.item_ids, start=1)}
        known_codes = [codes[item] for item in items if item in codes]
        skipped = tuple(item for item in items if item not in codes)
        return Asker(name, np.array(known_codes, np.int64), skipped)
    if home is None:
        raise RecommendationError(
            f"user {user!r} is not on this node. Fix: ask the node that holds the user, give one "
            f"of its users ({some(_users(served))}), or give what the user liked: "
            f"--items ID,ID."
        )
    history, times = stored_history(served, home, user)
    return Asker(name, history, times=times, user=user if name == home else "")


def stored_history(served: Served, client: str, user: str) -> tuple[ItemArray, ItemArray]:
    """Item codes and their seconds: of the data that the model was trained with, then the new.

    No seconds where those of the data are not known.
    """
    part, new = served.clients[client], served.users.added(client, user) if served.users else []
    history = [*part.histories[user], *(code for code, _ in new)]
    times = [*part.times[user], *(time for _, time in new)] if user in part.times else []
    return np.array(history, np.int64), np.array(times, np.int64)


def add_items(served: Served, user: str, items: Sequence[str], seconds: int) -> None:
    """New interactions of a user of the node, raw item ids, oldest first, kept in its store.

    ``seconds``: when they were, as in the data. The next model that is installed begins anew with
    the histories of the node's data. Raises RecommendationError for an unknown user or item,
    for no item at all, and for a model that is in no store.
    """
    if not items:
        raise RecommendationError("no item to add. Fix: give item ids, as --add ID,ID.")
    home, codes = _home(served, user), {raw: code for code, raw in enumerate(served.item_ids, 1)}
    unknown = [item for item in items if item not in codes]
    if unknown:
        raise RecommendationError(
            f"the catalogue lacks {some(unknown)}. Fix: add items that the model was trained with."
        )
    if home is None or served.users is None:
        raise RecommendationError(
            f"user {user!r} is not on this node. Fix: add items where the user is; users here: "
            f"{some(_users(served))}."
        )
    served.users.append(home, user, [codes[item] for item in items], seconds)


def _sold(data: ClientDataset, asker: Asker) -> Asker:
    """The same without items that the client does not sell."""
    sold = np.isin(asker.history, data.rankable_items)
    foreign = tuple(data.item_ids[code - 1] for code in asker.history[~sold])
    times = asker.times[sold] if len(asker.times) else asker.times
    skipped = (*asker.skipped, *foreign)
    return replace(asker, history=asker.history[sold], times=times, skipped=skipped)


def _home(served: Served, user: str) -> str | None:
    """The client that holds ``user``."""
    names = (name for name, part in served.clients.items() if user in part.histories)
    return next(names, None)


def _largest(served: Served) -> str:
    if not served.clients:
        raise RecommendationError("this node serves no client. Fix: ask a node that has users.")
    return max(served.clients, key=lambda name: len(served.clients[name].histories))


def _users(served: Served) -> list[str]:
    return [user for part in served.clients.values() for user in part.histories]


def some(names: Sequence[str] | Mapping[str, object], limit: int = 5) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown}, ... {len(names)} in all"


def _model_scores(served: Served, asker: Asker, data: ClientDataset) -> Tensor:
    """Scores of all items by the model of the asker's client, whose data are given: (V + 1,)."""
    assembly = served_assembly(served)
    state = served.clients[asker.client].state
    whole = assembly.algorithm.personalization.model(served.shared, state)
    names = [user.user for user in data.users]
    row = names.index(asker.user) + 1 if asker.user in names else 0
    length = parse_settings(served.settings).model.max_length
    if assembly.task.model.serving is None:
        score = make_scorer(assembly.task, whole, data, length)
        return score([asker.history], [asker.times], np.array([row]))[0]
    question = Question(asker.history, asker.times, row)
    answer = partial(score_from_memory, assembly.task, whole, data, question, max_length=length)
    if not asker.user or served.users is None:
        return answer(memory=None)[0]
    history = np.stack([asker.history, asker.times], 1) if len(asker.times) else asker.history
    key = (asker.client, asker.user, weights_digest(whole), history)
    known = served.users.memory(*key)
    scores, memory = answer(memory=known)
    if known is None or memory.covered != known.covered:
        served.users.keep(*key, memory)
    return scores


def served_assembly(served: Served) -> Assembly:
    """The model that is served, from its settings; RecommendationError if they make another."""
    items = ItemCatalogue(tuple(served.item_ids), tuple(served.texts), vectors=served.vectors)
    assembly = _assembled(tuple(sorted(served.settings.items())), items, get_ident())
    if assembly.fingerprint != served.fingerprint:
        raise RecommendationError(
            f"the served model {served.fingerprint} is not the one that this version makes of its "
            f"settings ({assembly.fingerprint}). Fix: serve with the version that trained it, and "
            f"with its file of item vectors where model.item-vectors names one."
        )
    return assembly


@lru_cache(maxsize=8)
def _assembled(
    settings: tuple[tuple[str, Any], ...], catalogue: ItemCatalogue, _thread: int
) -> Assembly:
    """Kept while the process lives: making it takes longer than an answer from a memory.

    A thread has its own: a model's parameters are put into its module while it computes.
    """
    return assemble(parse_settings(dict(settings)), catalogue)


def served_data(served: Served, client: str) -> ClientDataset:
    """The client's data as it was split for training, and its catalogue: what can be ranked."""
    histories = served.clients[client].histories
    users = tuple(
        UserHistory(user, np.array(codes[:-2], np.int64), valid=codes[-2], test=codes[-1])
        for user, codes in histories.items()
        if len(codes) > HELD_OUT
    )
    data = ClientDataset(client, users, tuple(served.item_ids), served.secret)
    return with_catalogue(parse_settings(served.settings), data)


def _item_counts(served: Served, client: str) -> Tensor:
    """How often each item occurs in the client's histories: (V + 1,); -inf for never."""
    histories = served.clients[client].histories.values()
    codes = np.concatenate([np.empty(0, np.int64), *map(np.asarray, histories)]).astype(np.int64)
    counts = torch.from_numpy(np.bincount(codes, minlength=len(served.item_ids) + 1)).double()
    return counts.masked_fill(counts == 0, -torch.inf)


def _best(served: Served, scores: Tensor, k: int) -> tuple[Recommendation, ...]:
    """At most ``k``: fewer when the client can rank no more."""
    order = torch.argsort(scores, descending=True, stable=True)[:k].tolist()
    ranked = [(code, float(scores[code])) for code in order if torch.isfinite(scores[code])]
    return tuple(
        Recommendation(
            item=served.item_ids[code - 1],
            title=served.titles.get(served.item_ids[code - 1], ""),
            score=score,
            rank=rank,
        )
        for rank, (code, score) in enumerate(ranked, start=1)
    )
