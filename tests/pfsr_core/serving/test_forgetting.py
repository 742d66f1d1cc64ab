"""Who is forgotten leaves nothing behind in a store, whatever the algorithm kept; others stay."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfsr_core.models.compressors import USERS, UserMemory
from pfsr_core.models.item_scorer import CODES, ROWS
from pfsr_core.models.parameter_names import RESIDUAL
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.recommend import recommend
from pfsr_core.serving.served_model import RecommendationError
from pfsr_core.serving.store_files import forget_everywhere, open_served
from pfsr_core.serving.users import trained_items
from pfsr_core.settings.fields import Value
from tests.helpers.serving import served_after_two_rounds
from tests.helpers.tiny import tiny_world
from tests.pfsr_core.serving.test_users import KINDS, own_items, ranked, somebody, world


def test_prefixed_rows_of_a_user_go_too_and_the_others_keep_theirs(tmp_path: Path) -> None:
    """FeCoSR ends with two whole models in a state, and a row for every user in each."""
    settings, federation, assembly = tiny_world(
        algorithm__name="fecosr", **KINDS["tokens"], model__recent=4, model__personal_memory=True
    )
    served = served_after_two_rounds(settings, federation, assembly)
    client, _ = somebody(served)
    data = [data for data in federation.clients if data.client == client]
    broadcast = replace(assembly.algorithm.init(), params=served.shared, round=2).broadcast()
    (state,) = assembly.algorithm.finetunes(broadcast, [served.clients[client].state], data)
    rows = [name for name in state if name.endswith(USERS)]
    assert len(rows) == 3
    for name in rows:
        state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(1))
    part = replace(served.clients[client], state=state)
    NodeStore(tmp_path / "node.sqlite").install(replace(served, clients={client: part}))
    first, *others = part.histories
    before = [ranked(open_served(tmp_path / "node.sqlite"), user) for user in others]
    forget_everywhere(tmp_path, first)
    after = open_served(tmp_path / "node.sqlite")
    gone = own_items(served, client, first)
    for user, expected_scores in zip(others, before, strict=True):
        found = ranked(after, user)
        assert {pair for pair in found if pair[0] not in gone} == {
            pair for pair in expected_scores if pair[0] not in gone
        }
    for name in rows:
        assert torch.equal(after.clients[client].state[name], state[name][[0, 2, 3, 4]])


PERSONAL = [
    ("pfedrec", "shared"),
    ("pfsr", "semantic"),
    ("fed-avg", "dual"),
    ("fed-avg", "private"),
]


@pytest.mark.parametrize(("algorithm", "items"), PERSONAL)
def test_a_client_of_nobody_else_goes_with_its_user(
    algorithm: str, items: str, tmp_path: Path
) -> None:
    """Its own view of the items, a mask or what it trained would all tell of the one user."""
    changes: dict[str, Value] = {"algorithm__name": algorithm, "model__items": items}
    served = served_after_two_rounds(*tiny_world(**changes, federation__partition="user"))
    NodeStore(tmp_path / "node.sqlite").install(served)
    client, other = list(served.clients)[:2]
    (user,), (somebody_else,) = (served.clients[one].histories for one in (client, other))
    state = {name: tensor.clone() for name, tensor in served.clients[client].state.items()}
    assert forget_everywhere(tmp_path, user) == 1
    after = open_served(tmp_path / "node.sqlite")
    assert set(after.clients) == set(served.clients) - {client}
    assert recommend(after, somebody_else) == recommend(served, somebody_else)
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    long = [tensor.numpy().tobytes() for tensor in state.values() if tensor.nbytes > 16]
    assert long and not any(part in content for part in long if any(part))


def test_of_a_forgotten_user_no_item_is_left_in_a_view_that_others_share(tmp_path: Path) -> None:
    served = served_after_two_rounds(*tiny_world(algorithm__name="pfedrec"))
    NodeStore(tmp_path / "node.sqlite").install(served)
    client, part = next(iter(served.clients.items()))
    first, second = list(part.histories)[:2]
    only = set(trained_items(part.histories).tolist())
    forget_everywhere(tmp_path, first)
    after = open_served(tmp_path / "node.sqlite")
    state, rest = after.clients[client].state, trained_items(after.clients[client].histories)
    assert state[CODES].tolist() == rest.tolist() and only - set(rest.tolist())
    before = dict(zip(part.state[CODES].tolist(), part.state[ROWS], strict=True))
    for code, row in zip(state[CODES].tolist(), state[ROWS], strict=True):
        assert torch.equal(row, before[code])
    assert recommend(after, second, k=5).recommendations


def test_bytes_of_an_older_memory_are_gone_whatever_sqlite_does_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(*args: object, **options: object) -> sqlite3.Connection:
        connection = original(*args, **options)
        connection.execute("PRAGMA secure_delete = OFF")
        return connection

    original = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", careless)
    NodeStore(tmp_path / "node.sqlite").install(world("identity")[3])
    served = open_served(tmp_path / "node.sqlite")
    who, large = somebody(served), torch.full((5000,), 1.2345)
    for tensor in (large, torch.zeros(9)):
        served.users.keep(*who, "weights", np.arange(3), UserMemory(2, {"keys": tensor}))
    forget_everywhere(tmp_path, who[1])
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert large[:4].numpy().tobytes() not in content


def test_nobody_is_forgotten_where_no_store_is(tmp_path: Path) -> None:
    for place, problem in ((tmp_path, "no node's store"), (tmp_path / "no.sqlite", "no such file")):
        with pytest.raises(RecommendationError, match=problem):
            forget_everywhere(place, "user-1")


def test_models_are_counted_and_not_clients(tmp_path: Path) -> None:
    """Somebody may be a customer of two shops on one node."""
    served = world("identity")[3]
    one, other = list(served.clients)[:2]
    user, codes = next(iter(served.clients[one].histories.items()))
    both = replace(
        served.clients[other], histories={**served.clients[other].histories, user: codes}
    )
    both = replace(
        both, state={**both.state, RESIDUAL: torch.zeros(len(trained_items(both.histories)) + 1, 8)}
    )
    served = replace(served, clients={**served.clients, other: both})
    for run in ("first", "second"):
        NodeStore(tmp_path / "node.sqlite").install(
            replace(served, origin=replace(served.origin, run=run))
        )
    assert forget_everywhere(tmp_path, user) == 2
    left = open_served(tmp_path / "node.sqlite").clients
    assert not [name for name, part in left.items() if user in part.histories]
