"""Serving from memories: answers of the whole model, kept on the node, gone with the user."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pfsr_core.assembly.data import Federation
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.evaluation.scoring import make_scorer
from pfsr_core.federated.model import Assembly
from pfsr_core.models.compressors import USERS, LearnedTokens, RecurrentState, UserMemory
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.recommend import add_items, recommend
from pfsr_core.serving.restore import stored_history
from pfsr_core.serving.served_model import RecommendationError, Served, ServedClient
from pfsr_core.serving.sqlite_file import StateMissingError
from pfsr_core.serving.store_files import forget_everywhere, open_served
from pfsr_core.serving.users import trained_items
from pfsr_core.settings.fields import Value
from tests.helpers.serving import served_after_two_rounds
from tests.helpers.tiny import tiny_world

NOW = 1_700_000_000
KINDS = {
    "tokens": {"model__encoder": "sasrec", "model__compressor": "tokens"},
    "tokens and times": {"model__encoder": "hstu", "model__compressor": "tokens"},
    "state": {"model__encoder": "gru4rec", "model__compressor": "state"},
    "associative state": {"model__compressor": "state", "algorithm__name": "pfsr"},
    "identity": {},
}


@cache
def world(kind: str) -> tuple[Settings, Federation, Assembly, Served]:
    changes: dict[str, Value] = {
        "algorithm__name": "fed-avg",
        "model__items": "dual",
        "model__recent": 4,
        "model__personal_memory": kind != "identity",
        **KINDS[kind],
    }
    settings, federation, assembly = tiny_world(**changes)
    served = served_after_two_rounds(settings, federation, assembly)
    return settings, federation, assembly, served


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def path(kind: str, tmp_path: Path) -> Path:
    NodeStore(tmp_path / "node.sqlite").install(world(kind)[3])
    return tmp_path / "node.sqlite"


def somebody(served: Served) -> tuple[str, str]:
    """The last user of a client of several: a client and a user."""
    client = next(name for name, part in served.clients.items() if len(part.histories) > 2)
    return client, list(served.clients[client].histories)[-1]


def expected(
    kind: str, client: str, user: str, history: ItemArray, times: ItemArray
) -> torch.Tensor:
    """Scores of the whole model, which reads the history anew: (V + 1,)."""
    settings, federation, assembly, served = world(kind)
    (data,) = [data for data in federation.clients if data.client == client]
    whole = assembly.algorithm.personalize(served.shared, served.clients[client].state)
    row = [one.user for one in data.users].index(user) + 1
    score = make_scorer(assembly.task, whole, data, settings.model.max_length)
    return score([history], [times], np.array([row]))[0]


def assert_same(served: Served, kind: str, client: str, user: str) -> None:
    history, times = stored_history(served, client, user)
    scores = expected(kind, client, user, history, times)
    scores[[0, *history.tolist()]] = -torch.inf
    best = torch.argsort(scores, descending=True, stable=True)[:10].tolist()
    answer = recommend(served, user, k=10).recommendations
    assert [one.item for one in answer] == [served.items.ids[code - 1] for code in best]
    assert [one.score for one in answer] == pytest.approx(scores[best].tolist(), abs=1e-5)


def stored(path: Path, table: str) -> int:
    with sqlite3.connect(path) as file:
        return int(file.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def test_answers_are_those_of_the_whole_model_however_much_is_new(kind: str, path: Path) -> None:
    served = open_served(path)
    client, user = somebody(served)
    assert_same(served, kind, client, user)
    assert stored(path, "memories") == (kind != "identity")
    for day, item in enumerate(served.items.ids[:9]):
        add_items(served, user, [item], NOW + 86_400 * day)
        assert_same(served, kind, client, user)
        assert_same(open_served(path), kind, client, user)
    assert stored(path, "events") == 9


def items_read_by(monkeypatch: pytest.MonkeyPatch, compressor: type, method: str) -> list[int]:
    """How many items the method is given, call by call."""
    lengths: list[int] = []
    original = getattr(compressor, method)

    def counting(self: object, encoder: object, x: torch.Tensor, *rest: object) -> object:
        lengths.append(x.shape[1])
        return original(self, encoder, x, *rest)

    monkeypatch.setattr(compressor, method, counting)
    return lengths


@pytest.fixture
def compressed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return items_read_by(monkeypatch, LearnedTokens, "compress")


@pytest.mark.parametrize("kind", ["tokens"], indirect=False)
def test_old_items_are_compressed_again_only_when_the_recent_part_is_full(
    kind: str, path: Path, compressed: list[int]
) -> None:
    served = open_served(path)
    user = somebody(served)[1]
    recommend(served, user)
    for count, item in enumerate(served.items.ids[:8], start=1):
        add_items(served, user, [item], NOW)
        recommend(served, user)
        recommend(served, user)
        assert len(compressed) <= 1 + -(-count // 2), "R is 4: two new items at a time"
    assert len(compressed) == 5


@pytest.mark.parametrize("kind", ["state", "associative state"])
def test_a_state_reads_what_is_new_alone(
    kind: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = items_read_by(monkeypatch, RecurrentState, "recall")
    served = open_served(path)
    client, user = somebody(served)
    recommend(served, user)
    assert sum(read) == len(served.clients[client].histories[user])
    read.clear()
    for items in (served.items.ids[:1], served.items.ids[1:2], served.items.ids[2:5], []):
        if items:
            add_items(served, user, items, NOW)
        recommend(served, user)
    assert read == [1, 1, 3, 0]


class TestStale:
    WHO = somebody(world("tokens")[3])
    KEY = (*WHO, "weights", np.array([3, 1, 2]))

    @pytest.fixture
    def users(self, tmp_path: Path) -> object:
        store = NodeStore(tmp_path / "node.sqlite")
        store.install(world("tokens")[3])
        users = store.served().users
        users.keep(*self.KEY, UserMemory(2, {"keys": torch.ones(1, 2)}))
        return users

    def test_served_again_for_a_history_that_goes_on(self, users: object) -> None:
        for history in ([3, 1, 2], [3, 1], [3, 1, 7, 8]):
            found = users.memory(*self.WHO, "weights", np.array(history))
            assert found.covered == 2
            assert torch.equal(found.tensors["keys"], torch.ones(1, 2))

    @pytest.mark.parametrize("history", [[3], [3, 2, 1], []])
    def test_refused_for_another_history(self, users: object, history: list[int]) -> None:
        assert users.memory(*self.WHO, "weights", np.array(history)) is None

    def test_refused_for_other_weights(self, users: object) -> None:
        assert users.memory(*self.WHO, "others", self.KEY[3]) is None

    def test_refused_for_other_times(self, users: object) -> None:
        history = np.array([[3, 60], [1, 90], [2, 99]])
        users.keep(*self.WHO, "weights", history, UserMemory(2, {"keys": torch.ones(1)}))
        assert users.memory(*self.WHO, "weights", history) is not None
        history[0, 1] += 1
        assert users.memory(*self.WHO, "weights", history) is None

    def test_of_nobody_else(self, users: object) -> None:
        client, user = self.WHO
        assert users.memory(client, "another", *self.KEY[2:]) is None
        assert users.memory("another", user, *self.KEY[2:]) is None


@pytest.mark.parametrize("kind", ["tokens", "state"])
def test_a_memory_of_other_weights_is_made_again(kind: str, path: Path) -> None:
    """One number of the client's private part is changed behind the store's back."""
    served = open_served(path)
    client, user = somebody(served)
    recommend(served, user)
    part = served.clients[client]
    state = {name: tensor.clone() for name, tensor in part.state.items()}
    state[USERS][1:] += 0.5
    other = replace(served, clients={client: ServedClient(state, part.histories)})
    answer = recommend(other, user, k=5)
    alone = recommend(replace(other, users=None), user, k=5)
    assert answer == alone
    assert answer != recommend(replace(served, users=None), user, k=5)


@pytest.mark.parametrize("kind", ["tokens", "state"])
def test_a_new_model_and_a_reset_take_memories_along(kind: str, path: Path) -> None:
    store = NodeStore(path)
    for end in (lambda: store.install(world(kind)[3]), lambda: store.reset("tiny")):
        served = store.served()
        user = somebody(served)[1]
        add_items(served, user, served.items.ids[:1], NOW)
        recommend(served, user)
        assert stored(path, "memories") == stored(path, "events") == 1
        end()
        assert stored(path, "memories") == stored(path, "events") == 0


def ranked(served: Served, user: str) -> set[tuple[str, float]]:
    return {(one.item, one.score) for one in recommend(served, user, k=40).recommendations}


def own_items(served: Served, client: str, user: str) -> set[str]:
    """What nobody else of the client has trained: its private rows go with the user."""
    histories = dict(served.clients[client].histories)
    everybody = set(trained_items(histories).tolist())
    del histories[user]
    return {
        served.items.ids[code - 1] for code in everybody - set(trained_items(histories).tolist())
    }


@pytest.mark.parametrize("kind", ["tokens", "identity"])
def test_a_forgotten_user_is_in_no_byte_of_the_store(kind: str, path: Path) -> None:
    served = open_served(path)
    client, last = somebody(served)
    first, second = list(served.clients[client].histories)[:2]
    for user in (first, second, last):
        add_items(served, user, served.items.ids[:2], NOW)
    before = [ranked(served, user) for user in (second, last)]
    recommend(served, first)
    row = served.clients[client].state.get(USERS)
    assert forget_everywhere(path.parent, first) == 1
    after = open_served(path)
    assert first not in after.clients[client].histories
    others = {item for item, _ in ranked(after, second)} - own_items(served, client, first)
    for user, expected_scores in zip((second, last), before, strict=True):
        found = {pair for pair in ranked(after, user) if pair[0] in others}
        assert found == {pair for pair in expected_scores if pair[0] in others} != set()
    with pytest.raises(RecommendationError, match="not on this node"):
        recommend(after, first)
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert f'"{first}"'.encode() not in content
    if row is not None:
        assert row[1].numpy().tobytes() not in content
        assert row[2].numpy().tobytes() in content
    with pytest.raises(RecommendationError, match="nothing was deleted"):
        forget_everywhere(path.parent, first)


@pytest.mark.parametrize("kind", ["tokens"])
def test_who_has_the_store_open_while_it_changes_is_told(kind: str, path: Path) -> None:
    """Nothing is kept of a user who was forgotten, or with a model that is gone."""
    opened = open_served(path)
    client, last = somebody(opened)
    first = next(iter(opened.clients[client].histories))
    forget_everywhere(path, first)
    users, memory = opened.users, UserMemory(1, {"keys": torch.ones(2)})
    users.keep(client, first, "weights", np.arange(2), memory)
    for user in (first, last):
        with pytest.raises(StateMissingError, match="changed.*open the served model again"):
            recommend(opened, user)
    with pytest.raises(StateMissingError, match="a user less"):
        add_items(opened, first, opened.items.ids[:1], NOW)
    add_items(opened, last, opened.items.ids[:1], NOW)
    NodeStore(path).install(world(kind)[3])
    users.keep(client, last, "weights", np.arange(2), memory)
    with pytest.raises(StateMissingError, match="another served model"):
        add_items(opened, last, opened.items.ids[:1], NOW)
    assert stored(path, "events") == stored(path, "memories") == 0


def test_whatever_users_are_called(tmp_path: Path) -> None:
    """Whose history a store holds is looked up in the text that it is written as."""
    served, names = world("identity")[3], ['"', 'x": [1], "y', "\\", "é", "a: ", "0"]
    client, _ = somebody(served)
    part = ServedClient(served.clients[client].state, dict.fromkeys(names, [1, 2, 3]))
    NodeStore(tmp_path / "node.sqlite").install(replace(served, clients={client: part}))
    users = open_served(tmp_path / "node.sqlite").users
    for name in names:
        users.append(client, name, [4], NOW)
        assert users.added(client, name) == [(4, NOW)]
    for name in ("x", "y", "[1]", "", "a", "\\\\", "[1, 2, 3]"):
        with pytest.raises(StateMissingError):
            users.append(client, name, [4], NOW)


@pytest.mark.parametrize("kind", ["identity"])
class TestAdding:
    def test_what_is_new_is_not_recommended(self, kind: str, path: Path) -> None:
        served = open_served(path)
        user = somebody(served)[1]
        best = recommend(served, user, k=1).recommendations[0].item
        add_items(served, user, [best], NOW)
        assert best not in [one.item for one in recommend(served, user, 40).recommendations]

    def test_unknown_items_and_users_are_refused(self, kind: str, path: Path) -> None:
        served = open_served(path)
        with pytest.raises(RecommendationError, match="the catalogue lacks no-such-item"):
            add_items(served, somebody(served)[1], ["no-such-item"], NOW)
        with pytest.raises(RecommendationError, match="'stranger' is not on this node"):
            add_items(served, "stranger", served.items.ids[:1], NOW)
        assert stored(path, "events") == 0

    def test_given_items_stand_for_themselves(self, kind: str, path: Path) -> None:
        served = open_served(path)
        user = somebody(served)[1]
        before = recommend(served, user, items=served.items.ids[:3])
        add_items(served, user, served.items.ids[5:7], NOW)
        assert recommend(served, user, items=served.items.ids[:3]) == before


def test_a_store_of_the_layout_before_is_brought_to_this_one(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    NodeStore(path).install(world("identity")[3])
    with sqlite3.connect(path) as file:
        file.executescript("DROP TABLE events; DROP TABLE memories; PRAGMA user_version = 1")
    served = open_served(path)
    user = somebody(served)[1]
    add_items(served, user, served.items.ids[:1], NOW)
    assert stored(path, "events") == 1
    assert open_served(path).items.ids == served.items.ids
