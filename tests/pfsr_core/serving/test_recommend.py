"""Recommending from a node's store: the same model as in training, and an answer for everybody."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.items.modes import ITEM_MODES
from pfsr_core.serving import recommend as recommendation
from pfsr_core.serving.node_store import NodeStore, Served, ServedClient, default_state_directory
from pfsr_core.serving.recommend import (
    MODEL,
    POPULARITY,
    RecommendationError,
    find_served,
    open_served,
    recommend,
    served_assembly,
)
from pfsr_core.serving.sqlite_file import NodeStoreError
from tests.helpers.serving import served_after_two_rounds
from tests.helpers.tiny import tiny_world


def serve(**changes: str | int | float | bool) -> Served:
    """What a node installs after two rounds of the tiny federation."""
    return served_after_two_rounds(*tiny_world(**changes))


@pytest.fixture(scope="module")
def served() -> Served:
    return serve()


def some_user(served: Served) -> tuple[str, str, list[int]]:
    client, part = next(iter(served.clients.items()))
    user, codes = next(iter(part.histories.items()))
    return client, user, list(codes)


def raw(served: Served, codes: list[int]) -> list[str]:
    return [served.item_ids[code - 1] for code in codes]


def test_scores_are_those_of_the_trained_model(served: Served) -> None:
    settings, federation, assembly = tiny_world()
    client, user, codes = some_user(served)
    (data,) = [data for data in federation.clients if data.client == client]
    whole = assembly.algorithm.personalization.model(served.shared, served.clients[client].state)
    score = make_scorer(assembly.task, whole, data, settings.model.max_length)
    expected = score([np.array(codes)])[0]
    answer = recommend(served, user, k=5)
    assert answer.source == MODEL
    assert answer.client == client
    for item in answer.recommendations:
        code = served.item_ids.index(item.item) + 1
        assert item.score == pytest.approx(float(expected[code]), rel=1e-5, abs=1e-6)
    free = [c for c in data.touched.tolist() if c not in codes]
    best = sorted(free, key=lambda c: -float(expected[c]))[:5]
    assert [item.item for item in answer.recommendations] == raw(served, best)


@pytest.mark.parametrize("name", ["pfsr", "fed-avg", "fed-prox", "local-only"])
@pytest.mark.parametrize("items", ITEM_MODES)
def test_every_algorithm_can_be_served(name: str, items: str) -> None:
    served = serve(algorithm__name=name, model__items=items)
    answer = recommend(served, some_user(served)[1], k=3)
    assert answer.source == MODEL
    assert len(answer.recommendations) == 3


@given(data=st.data())
def test_ranked_without_the_history_or_repetition(data: st.DataObject) -> None:
    served = SERVED
    part = served.clients[data.draw(st.sampled_from(sorted(served.clients)))]
    user = data.draw(st.sampled_from(sorted(part.histories)))
    k = data.draw(st.integers(1, 60))
    given_items = data.draw(st.none() | st.lists(st.sampled_from(served.item_ids), max_size=12))
    answer = recommend(served, user, k, given_items)
    found = [item.item for item in answer.recommendations]
    history = raw(served, list(part.histories[user])) if given_items is None else given_items
    scores = [item.score for item in answer.recommendations]
    assert len(set(found)) == len(found) <= k
    assert not set(found) & set(history)
    assert scores == sorted(scores, reverse=True)
    assert [item.rank for item in answer.recommendations] == list(range(1, len(found) + 1))
    assert all(np.isfinite(scores))


SERVED = serve()


def test_titles_where_they_are_known(served: Served) -> None:
    user = some_user(served)[1]
    first = recommend(served, user, k=1).recommendations[0]
    assert first.title == served.titles[first.item]
    untitled = replace(served, titles={})
    assert recommend(untitled, user, k=1).recommendations[0].title == ""


def test_only_the_last_items_are_read(served: Served) -> None:
    length = int(served.settings["model.max-length"])
    _, user, _ = some_user(served)
    early, late = raw(served, [1, 2, 3]), raw(served, list(range(4, 4 + length)))
    with_early = recommend(served, user, 40, early + late)
    without = recommend(served, user, 40, late)
    scores = {item.item: item.score for item in without.recommendations}
    for item in with_early.recommendations:
        assert item.score == pytest.approx(scores[item.item], rel=1e-5, abs=1e-6)
    assert not set(early) & {item.item for item in with_early.recommendations}


def test_unknown_user_is_told_what_to_do(served: Served) -> None:
    with pytest.raises(RecommendationError, match=r"'nobody'.*24 in all.*--items"):
        recommend(served, "nobody")


def test_new_user_with_a_few_items(served: Served) -> None:
    items = raw(served, [3, 1])
    answer = recommend(served, "guest", 4, [items[0], "no-such-item", items[1]])
    assert answer.source == MODEL
    assert answer.skipped == ("no-such-item",)
    assert len(answer.recommendations) == 4
    assert answer.client in served.clients
    other = sorted(served.clients)[-1]
    assert recommend(served, "guest", 4, items, client=other).client == other


def test_the_largest_client_answers_new_users(served: Served) -> None:
    small, large = list(served.clients)[:2]
    clients = {
        small: ServedClient(served.clients[small].state, {"only": [1, 2, 3]}),
        large: served.clients[large],
    }
    assert recommend(replace(served, clients=clients), "guest", 1, ["x"]).client == large


@pytest.mark.parametrize("items", [[], ["no-such-item"]])
def test_without_history_popularity_answers_and_says_so(served: Served, items: list[str]) -> None:
    client, user, _ = some_user(served)
    answer = recommend(served, user, 3, items)
    assert answer.source == POPULARITY
    assert "no history yet" in answer.source
    histories = served.clients[client].histories.values()
    counts = np.bincount(np.concatenate([np.array(codes) for codes in histories]))
    assert [item.score for item in answer.recommendations] == sorted(counts.tolist())[::-1][:3]
    top = answer.recommendations[0]
    assert counts[served.item_ids.index(top.item) + 1] == counts.max()


def test_nothing_left_to_recommend(served: Served) -> None:
    _, user, _ = some_user(served)
    assert recommend(served, user, 5, served.item_ids).recommendations == ()


@pytest.mark.parametrize("k", [0, -1])
def test_k_must_be_positive(served: Served, k: int) -> None:
    with pytest.raises(RecommendationError, match="at least one"):
        recommend(served, some_user(served)[1], k)


def test_unknown_client(served: Served) -> None:
    with pytest.raises(RecommendationError, match="unknown client 'shop'.*group-00"):
        recommend(served, "guest", 1, ["x"], client="shop")


def test_a_node_without_clients(served: Served) -> None:
    with pytest.raises(RecommendationError, match="serves no client"):
        recommend(replace(served, clients={}), "guest", 1, [])


def test_another_model_than_the_settings_make_is_refused(served: Served) -> None:
    with pytest.raises(RecommendationError, match="served model other.*Fix: "):
        recommend(replace(served, fingerprint="other"), some_user(served)[1])


def test_through_the_store(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "node-0.sqlite"
    NodeStore(path).install(served)
    _, user, _ = some_user(served)
    assert recommend(open_served(path), user) == recommend(served, user)
    assert open_served(path, "tiny").run == "tiny"
    with pytest.raises(NodeStoreError, match="'other'"):
        open_served(path, "other")


def test_a_model_that_answers_again_is_not_made_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    original = recommendation.assemble
    monkeypatch.setattr(
        recommendation, "assemble", lambda *given: made.append(given) or original(*given)
    )
    recommendation._assembled.cache_clear()
    first, second = (recommend(served, some_user(served)[1]) for _ in range(2))
    assert first == second and len(made) == 1
    other = serve(model__max_length=9)
    assert recommend(other, some_user(other)[1]) != first and len(made) == 2
    assert recommend(served, some_user(served)[1]) == first and len(made) == 2


def test_threads_do_not_share_a_model(served: Served) -> None:
    """Its module holds the parameters of whoever is answered just now."""
    with ThreadPoolExecutor(1) as other:
        theirs, again = (other.submit(served_assembly, served).result() for _ in range(2))
    assert theirs is again
    assert theirs is not served_assembly(served) is served_assembly(served)


def test_a_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(RecommendationError, match="no such file.*Fix: "):
        open_served(tmp_path / "node-0.sqlite")
    assert not list(tmp_path.iterdir())


def test_a_foreign_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    file = sqlite3.connect(path)
    file.execute("CREATE TABLE mine (x)")
    file.commit()
    file.close()
    with pytest.raises(NodeStoreError, match="another program"):
        open_served(path)


def test_recommending_changes_nothing(served: Served) -> None:
    before = {name: tensor.clone() for name, tensor in served.shared.items()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = recommend(served, some_user(served)[1])
    assert recommend(served, some_user(served)[1]) == first
    assert all(torch.equal(before[name], served.shared[name]) for name in before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_directory_of_stores_is_searched_for_the_user(tmp_path: Path, served: Served) -> None:
    names = sorted(served.clients)
    for node, mine in enumerate((names[:3], names[3:])):
        part = replace(served, clients={name: served.clients[name] for name in mine})
        NodeStore(tmp_path / f"node-{node}.sqlite").install(part)
    user = next(iter(served.clients[names[-1]].histories))
    assert names[-1] in find_served(tmp_path, user).clients
    assert names[0] in find_served(tmp_path, "nobody").clients
    assert find_served(tmp_path / "node-1.sqlite", user).run == "tiny"


def test_a_directory_without_stores_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecommendationError, match="no node's store.*make run"):
        find_served(tmp_path, "1")


def test_the_default_place_follows_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFSR_HOME", raising=False)
    assert default_state_directory() == Path(".pfsr/state")
    monkeypatch.setenv("PFSR_HOME", "/elsewhere")
    assert default_state_directory() == Path("/elsewhere/state")
