"""Who is forgotten leaves nothing behind in a store, whatever the algorithm kept; others stay."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfsr_core.models.compressors import USERS
from pfsr_core.models.item_scorer import CODES, ROWS
from pfsr_core.models.next_item import ITEMS, RESIDUAL
from pfsr_core.node_store import NodeStore
from pfsr_core.recommend import RecommendationError, forget_everywhere, open_served
from pfsr_core.served_users import UserMemory, trained_items
from tests.serving import served_after_two_rounds
from tests.test_served_users import KINDS, own_items, ranked, somebody, world
from tests.tiny import tiny_world


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


def test_rows_of_an_own_view_go_with_who_alone_had_the_items(tmp_path: Path) -> None:
    served = served_after_two_rounds(*tiny_world(algorithm__name="pfedrec"))
    client, last = somebody(served)
    NodeStore(tmp_path / "node.sqlite").install(served)
    before = served.clients[client].state
    gone = [1 + served.item_ids.index(item) for item in own_items(served, client, last)]
    left = [code not in gone for code in before[CODES].tolist()]
    assert sum(left) < len(left)
    forget_everywhere(tmp_path, last)
    after = open_served(tmp_path / "node.sqlite").clients[client].state
    assert torch.equal(after[CODES], before[CODES][torch.tensor(left)])
    assert torch.equal(after[ROWS], before[ROWS][torch.tensor(left)])


def test_a_client_goes_with_its_last_user(tmp_path: Path) -> None:
    """All that its parameters know is of this user."""
    served = served_after_two_rounds(*tiny_world(federation__partition="user"))
    NodeStore(tmp_path / "node.sqlite").install(served)
    client, part = next(iter(served.clients.items()))
    (user,) = part.histories
    assert forget_everywhere(tmp_path, user) == 1
    after = open_served(tmp_path / "node.sqlite")
    assert served.clients.keys() - after.clients.keys() == {client}
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert part.state[ITEMS][1].numpy().tobytes() not in content


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
        NodeStore(tmp_path / "node.sqlite").install(replace(served, run=run))
    assert forget_everywhere(tmp_path, user) == 2
    left = open_served(tmp_path / "node.sqlite").clients
    assert not [name for name, part in left.items() if user in part.histories]
