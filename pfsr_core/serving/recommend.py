"""Recommendations for one user by a served model: no server, no network.

A user of the node is ranked with the model of the user's client and the stored history. A user whom
the node does not know (cold start) may give a few items instead, and is ranked with the model of
the node's largest client, or of the client named. Items of the history are never recommended. Items
that are given have no times: a model that reads times takes the gaps between them for zero.

A user without any history gets the items most frequent in that client's histories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pfsr_core.assembly.settings import parse_settings
from pfsr_core.data.client_dataset import ClientDataset, ItemArray, no_times
from pfsr_core.evaluation.scoring import Question, make_scorer, score_from_memory
from pfsr_core.serving.restore import served_assembly, served_data, stored_history
from pfsr_core.serving.served_model import RecommendationError, Served, preview
from pfsr_core.serving.users import weights_digest

MODEL = "model"
POPULARITY = "popularity: no history yet"


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item: Raw item id.
        title: Its title, "" where none is known.
        score: The model's score.
        rank: Position in the list, from 1 on.
    """

    item: str
    title: str
    score: float
    rank: int


@dataclass(frozen=True)
class Answer:
    """The recommendations for one user.

    Attributes:
        user: Raw user id.
        client: The client whose model answered.
        source: MODEL or POPULARITY.
        recommendations: The best item first.
        skipped: Items that were given and that the client does not sell.
    """

    user: str
    client: str
    source: str
    recommendations: tuple[Recommendation, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Query:
    """What is asked of the model of ``client``.

    Attributes:
        client: The client whose model answers.
        history: Item codes (n,), oldest first.
        skipped: Raw ids of given items that are not in the catalogue.
        times: Seconds of the history (n,), empty where they are not known.
        user: Whose stored history it is, "" of a history that was given.
    """

    client: str
    history: ItemArray
    skipped: tuple[str, ...] = ()
    times: ItemArray = field(default_factory=no_times)
    user: str = ""


def recommend(
    served: Served, user: str, k: int = 10, items: Sequence[str] | None = None, client: str = ""
) -> Answer:
    """The ``k`` best items for ``user``, the best first; ties go to the lower item code.

    Args:
        served: The model.
        user: Raw user id.
        k: How many items.
        items: Raw item ids, oldest first, in place of the stored history; then the user may be
            unknown.
        client: Whose model answers, else that of the user's client.

    Raises:
        RecommendationError: An unknown user without items, an unknown client, or k < 1.
    """
    check_question(served, k, client)
    query = _query(served, user, items, client)
    data = served_data(served, query.client)
    query = _without_unsold_items(query, data)
    if len(query.history):
        scores, source = _model_scores(served, query, data), MODEL
    else:
        scores, source = _item_counts(served, query.client), POPULARITY
    scores[torch.from_numpy(query.history)] = -torch.inf
    scores[0] = -torch.inf
    return Answer(user, query.client, source, _top_items(served, scores, k), query.skipped)


def check_question(served: Served, k: int, client: str) -> None:
    """Checks a question before it is answered.

    Raises:
        RecommendationError: k < 1, or ``client`` is not served here; "" stands for any.
    """
    if k < 1:
        raise RecommendationError(f"k = {k}. Fix: ask for at least one item.")
    if client and client not in served.clients:
        known = preview(served.clients)
        raise RecommendationError(f"unknown client {client!r}. Fix: choose one of {known}.")


def _query(served: Served, user: str, items: Sequence[str] | None, client: str) -> Query:
    home = _home_client(served, user)
    name = client or home or _largest_client(served)
    if items is not None:
        codes = served.items.codes
        known_codes = [codes[item] for item in items if item in codes]
        skipped = tuple(item for item in items if item not in codes)
        return Query(name, np.array(known_codes, np.int64), skipped)
    if home is None:
        raise RecommendationError(
            f"user {user!r} is not on this node. Fix: ask the node that holds the user, give one "
            f"of its users ({preview(_all_users(served))}), or give what the user liked: "
            f"--items ID,ID."
        )
    history, times = stored_history(served, home, user)
    return Query(name, history, times=times, user=user if name == home else "")


def add_items(served: Served, user: str, items: Sequence[str], seconds: int) -> None:
    """Stores new interactions of a user of the node.

    The next model that is installed starts from the histories of the node's data again.

    Args:
        served: The model.
        user: Raw user id.
        items: Raw item ids, oldest first.
        seconds: When they were, in the unit of the data's times.

    Raises:
        RecommendationError: An unknown user or item, no item at all, or a model in no store.
    """
    if not items:
        raise RecommendationError("no item to add. Fix: give item ids, as --add ID,ID.")
    home, codes = _home_client(served, user), served.items.codes
    unknown = [item for item in items if item not in codes]
    if unknown:
        raise RecommendationError(
            f"the catalogue lacks {preview(unknown)}. "
            f"Fix: add items that the model was trained with."
        )
    if home is None or served.users is None:
        raise RecommendationError(
            f"user {user!r} is not on this node. Fix: add items where the user is; users here: "
            f"{preview(_all_users(served))}."
        )
    served.users.append(home, user, [codes[item] for item in items], seconds)


def _without_unsold_items(query: Query, data: ClientDataset) -> Query:
    """The query without items that the client does not sell."""
    sold = np.isin(query.history, data.catalogue)
    foreign = tuple(data.item_ids[code - 1] for code in query.history[~sold])
    times = query.times[sold] if len(query.times) else query.times
    skipped = (*query.skipped, *foreign)
    return replace(query, history=query.history[sold], times=times, skipped=skipped)


def _home_client(served: Served, user: str) -> str | None:
    """The client that holds ``user``."""
    names = (name for name, part in served.clients.items() if user in part.histories)
    return next(names, None)


def _largest_client(served: Served) -> str:
    if not served.clients:
        raise RecommendationError("this node serves no client. Fix: ask a node that has users.")
    return max(served.clients, key=lambda name: len(served.clients[name].histories))


def _all_users(served: Served) -> list[str]:
    return [user for part in served.clients.values() for user in part.histories]


def _model_scores(served: Served, query: Query, data: ClientDataset) -> Tensor:
    """Scores of all items by the model of the query's client, which has ``data``: (V + 1,)."""
    assembly = served_assembly(served)
    params = assembly.algorithm.personalize(served.shared, served.clients[query.client].state)
    names = [user.user for user in data.users]
    row = names.index(query.user) + 1 if query.user in names else 0
    length = parse_settings(served.origin.settings).model.max_length
    if assembly.task.serving is None:
        score = make_scorer(assembly.task, params, data, length)
        return score([query.history], [query.times], np.array([row]))[0]
    question = Question(query.history, query.times, row)
    answer = partial(score_from_memory, assembly.task, params, data, length, question)
    if not query.user or served.users is None:
        return answer(None)[0]
    history = np.stack([query.history, query.times], 1) if len(query.times) else query.history
    key = (query.client, query.user, weights_digest(params), history)
    known = served.users.memory(*key)
    scores, memory = answer(known)
    if known is None or memory.covered != known.covered:
        served.users.keep(*key, memory)
    return scores


def _item_counts(served: Served, client: str) -> Tensor:
    """How often each item occurs in the client's histories: (V + 1,); -inf for never."""
    histories = served.clients[client].histories.values()
    codes = np.concatenate([np.empty(0, np.int64), *map(np.asarray, histories)]).astype(np.int64)
    counts = torch.from_numpy(np.bincount(codes, minlength=len(served.items.ids) + 1)).double()
    return counts.masked_fill(counts == 0, -torch.inf)


def _top_items(served: Served, scores: Tensor, k: int) -> tuple[Recommendation, ...]:
    """At most ``k``: fewer when the client can rank no more."""
    order = torch.argsort(scores, descending=True, stable=True)[:k].tolist()
    ranked = [(code, float(scores[code])) for code in order if torch.isfinite(scores[code])]
    return tuple(
        Recommendation(
            item=served.items.ids[code - 1],
            title=served.items.titles.get(served.items.ids[code - 1], ""),
            score=score,
            rank=rank,
        )
        for rank, (code, score) in enumerate(ranked, start=1)
    )
