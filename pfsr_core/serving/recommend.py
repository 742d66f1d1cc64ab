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
from pfsr_core.data.client_dataset import ClientDataset, ItemArray, unknown_times
from pfsr_core.evaluation.scoring import ScoringQuery, make_scorer, score_from_memory
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
    times: ItemArray = field(default_factory=unknown_times)
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
    client_data = served_data(served, query.client)
    query = _without_unsold_items(query, client_data)
    if len(query.history):
        scores, answer_source = _model_scores(served, query, client_data), MODEL
    else:
        scores, answer_source = _item_counts(served, query.client), POPULARITY
    scores[torch.from_numpy(query.history)] = -torch.inf
    scores[0] = -torch.inf
    return Answer(user, query.client, answer_source, _top_items(served, scores, k), query.skipped)


def check_question(served: Served, k: int, client_name: str) -> None:
    """Checks a question before it is answered.

    Raises:
        RecommendationError: k < 1, or ``client_name`` is not served here; "" stands for any.
    """
    if k < 1:
        raise RecommendationError(f"k = {k}. Fix: ask for at least one item.")
    if client_name and client_name not in served.clients:
        known_clients = preview(served.clients)
        raise RecommendationError(
            f"unknown client {client_name!r}. Fix: choose one of {known_clients}."
        )


def _query(served: Served, user_id: str, item_ids: Sequence[str] | None, client: str) -> Query:
    home_client = _home_client(served, user_id)
    client_name = client or home_client or _largest_client(served)
    if item_ids is not None:
        item_codes = served.items.codes
        known_codes = [item_codes[item_id] for item_id in item_ids if item_id in item_codes]
        skipped_items = tuple(item_id for item_id in item_ids if item_id not in item_codes)
        return Query(client_name, np.array(known_codes, np.int64), skipped_items)
    if home_client is None:
        raise RecommendationError(
            f"user {user_id!r} is not on this node. Fix: ask the node that holds the user, give "
            f"one of its users ({preview(_all_users(served))}), or give what the user liked: "
            f"--items ID,ID."
        )
    history, times = stored_history(served, home_client, user_id)
    return Query(
        client_name, history, times=times, user=user_id if client_name == home_client else ""
    )


def add_items(served: Served, user_id: str, item_ids: Sequence[str], seconds: int) -> None:
    """Stores new interactions of a user of the node.

    The next model that is installed starts from the histories of the node's data again.

    Args:
        served: The model.
        user_id: Raw user id.
        item_ids: Raw item ids, oldest first.
        seconds: When they were, in the unit of the data's times.

    Raises:
        RecommendationError: An unknown user or item, no item at all, or a model in no store.
    """
    if not item_ids:
        raise RecommendationError("no item to add. Fix: give item ids, as --add ID,ID.")
    home_client, item_codes = _home_client(served, user_id), served.items.codes
    unknown_items = [item_id for item_id in item_ids if item_id not in item_codes]
    if unknown_items:
        raise RecommendationError(
            f"the catalogue lacks {preview(unknown_items)}. "
            f"Fix: add items that the model was trained with."
        )
    if home_client is None or served.users is None:
        raise RecommendationError(
            f"user {user_id!r} is not on this node. Fix: add items where the user is; users here: "
            f"{preview(_all_users(served))}."
        )
    served.users.append(
        home_client, user_id, [item_codes[item_id] for item_id in item_ids], seconds
    )


def _without_unsold_items(query: Query, client_data: ClientDataset) -> Query:
    """The query without items that the client does not sell."""
    sold_mask = np.isin(query.history, client_data.rankable_items)
    foreign_items = tuple(
        client_data.item_ids[item_code - 1] for item_code in query.history[~sold_mask]
    )
    sold_times = query.times[sold_mask] if len(query.times) else query.times
    skipped_items = (*query.skipped, *foreign_items)
    return replace(query, history=query.history[sold_mask], times=sold_times, skipped=skipped_items)


def _home_client(served: Served, user_id: str) -> str | None:
    """The client that holds ``user_id``."""
    client_names = (
        client_name
        for client_name, served_client in served.clients.items()
        if user_id in served_client.histories
    )
    return next(client_names, None)


def _largest_client(served: Served) -> str:
    if not served.clients:
        raise RecommendationError("this node serves no client. Fix: ask a node that has users.")
    return max(served.clients, key=lambda client_name: len(served.clients[client_name].histories))


def _all_users(served: Served) -> list[str]:
    return [
        user_id for served_client in served.clients.values() for user_id in served_client.histories
    ]


def _model_scores(served: Served, query: Query, client_data: ClientDataset) -> Tensor:
    """Scores of all items by the model of the query's client, whose data are given: (V + 1,)."""
    assembly = served_assembly(served)
    client_state = served.clients[query.client].state
    merged_params = assembly.algorithm.personalization.model(served.shared, client_state)
    user_ids = [user.user for user in client_data.users]
    user_row = user_ids.index(query.user) + 1 if query.user in user_ids else 0
    max_length = parse_settings(served.origin.settings).model.max_length
    if assembly.task.model.serving is None:
        score_histories = make_scorer(assembly.task, merged_params, client_data, max_length)
        return score_histories([query.history], [query.times], np.array([user_row]))[0]
    scoring_query = ScoringQuery(query.history, query.times, user_row)
    score_query = partial(
        score_from_memory,
        assembly.task,
        merged_params,
        client_data,
        scoring_query,
        max_length=max_length,
    )
    if not query.user or served.users is None:
        return score_query(memory=None)[0]
    timed_history = np.stack([query.history, query.times], 1) if len(query.times) else query.history
    memory_key = (query.client, query.user, weights_digest(merged_params), timed_history)
    stored_memory = served.users.memory(*memory_key)
    scores, new_memory = score_query(memory=stored_memory)
    if stored_memory is None or new_memory.covered != stored_memory.covered:
        served.users.keep(*memory_key, new_memory)
    return scores


def _item_counts(served: Served, client_name: str) -> Tensor:
    """How often each item occurs in the client's histories: (V + 1,); -inf for never."""
    user_histories = served.clients[client_name].histories.values()
    item_codes = np.concatenate([np.empty(0, np.int64), *map(np.asarray, user_histories)]).astype(
        np.int64
    )
    item_counts = torch.from_numpy(
        np.bincount(item_codes, minlength=len(served.items.ids) + 1)
    ).double()
    return item_counts.masked_fill(item_counts == 0, -torch.inf)


def _top_items(served: Served, scores: Tensor, k: int) -> tuple[Recommendation, ...]:
    """At most ``k``: fewer when the client can rank no more."""
    ranked_codes = torch.argsort(scores, descending=True, stable=True)[:k].tolist()
    scored_codes = [
        (item_code, float(scores[item_code]))
        for item_code in ranked_codes
        if torch.isfinite(scores[item_code])
    ]
    return tuple(
        Recommendation(
            item=served.items.ids[item_code - 1],
            title=served.items.titles.get(served.items.ids[item_code - 1], ""),
            score=score,
            rank=rank,
        )
        for rank, (item_code, score) in enumerate(scored_codes, start=1)
    )
