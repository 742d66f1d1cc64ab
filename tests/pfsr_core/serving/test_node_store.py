"""A node's memory: versions, one transaction, refusal of what belongs to another model."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.served_model import ModelOrigin, Served, ServedClient, ServedItems
from pfsr_core.serving.sqlite_file import (
    NodeStoreError,
    StateMismatchError,
    StateMissingError,
    StoreFile,
)

MODEL = "model-a"


def state(value: float):
    return {"item_embedding.weight": torch.full((4, 3), value), "personal/x": torch.ones(2) * value}


def same(a, b):
    return a is not None and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def store(tmp_path):
    return NodeStore(tmp_path / "private" / "node-0.sqlite")


def save(store, round_, value, base, client="c", model=MODEL):
    store.save(
        "run", "pfsr", round_, {client: model}, {client: state(value)}, last_rounds={client: base}
    )


def test_a_state_comes_back_bit_for_bit(store):
    odd = {"x": torch.tensor([1e-45, -0.0, 3.14]), "m": torch.tensor([True, False])}
    store.save("run", "pfsr", 1, {"c": MODEL}, {"c": odd}, last_rounds={})
    assert same(store.load("run", "pfsr", "c", 1, MODEL), odd)


def test_no_round_yet_is_no_state(store):
    assert store.load("run", "pfsr", "c", 0, MODEL) is None


def test_a_new_handle_finds_what_an_old_one_wrote(store):
    save(store, 1, 1.0, 0)
    assert same(NodeStore(store.path).load("run", "pfsr", "c", 1, MODEL), state(1.0))


def test_runs_algorithms_and_clients_do_not_mix(store):
    save(store, 1, 1.0, 0)
    for key in (("other", "pfsr", "c"), ("run", "fed-avg", "c"), ("run", "pfsr", "d")):
        with pytest.raises(StateMissingError, match="round 1"):
            store.load(*key, 1, MODEL)


def test_the_version_before_stays_for_a_lost_answer(store):
    save(store, 1, 1.0, 0)
    save(store, 2, 2.0, 1)
    assert store.rounds("run", "pfsr", "c") == [1, 2]
    assert same(store.load("run", "pfsr", "c", 1, MODEL), state(1.0))


def test_answers_lost_again_and_again_never_lose_the_version_that_counts(store):
    save(store, 1, 1.0, 0)
    for round_ in range(2, 6):
        save(store, round_, float(round_), 1)
    assert store.rounds("run", "pfsr", "c") == [1, 5]


def test_two_versions_are_kept_no_more(store):
    for round_ in range(1, 6):
        save(store, round_, float(round_), round_ - 1)
    assert store.rounds("run", "pfsr", "c") == [4, 5]


def test_a_round_finished_late_does_not_remove_a_later_one(store):
    save(store, 1, 1.0, 0)
    save(store, 3, 3.0, 1)
    save(store, 2, 2.0, 1)
    assert 3 in store.rounds("run", "pfsr", "c")


def test_a_round_done_again_replaces_its_version(store):
    save(store, 1, 1.0, 0)
    save(store, 1, 9.0, 0)
    assert same(store.load("run", "pfsr", "c", 1, MODEL), state(9.0))


def test_states_of_many_clients_come_back_together(store):
    states = {name: state(float(value)) for value, name in enumerate("abc")}
    marks = dict.fromkeys("abcd", MODEL)
    store.save("run", "pfsr", 1, marks, states, last_rounds={})
    found = store.load_many("run", "pfsr", {"a": 1, "c": 1, "d": 0}, marks)
    assert list(found) == ["a", "c"]  # d has none yet
    assert all(same(found[name], states[name]) for name in found)
    with pytest.raises(StateMissingError, match="client 'd'"):
        store.load_many("run", "pfsr", {"a": 1, "d": 1}, marks)
    with pytest.raises(StateMismatchError, match="client 'b'"):
        store.load_many("run", "pfsr", {"a": 1, "b": 1}, {**marks, "b": "model-b"})


def test_the_state_of_another_model_is_refused_with_both_names(store):
    save(store, 1, 1.0, 0)
    with pytest.raises(StateMismatchError, match=r"model-a.*model-b.*reset"):
        store.load("run", "pfsr", "c", 1, "model-b")


def test_reset_forgets_one_run(store):
    save(store, 1, 1.0, 0)
    store.save("other", "pfsr", 1, {"c": MODEL}, {"c": state(2.0)}, last_rounds={})
    assert store.reset("run") == 1
    assert store.runs() == ["other"]


def test_a_warm_start_begins_with_the_newest_states(store):
    save(store, 1, 1.0, 0)
    save(store, 2, 2.0, 1)
    assert store.copy_states("run", "next") == 1
    assert store.copy_states("run", "next") == 0
    assert same(store.load("next", "pfsr", "c", 0, MODEL), state(2.0))
    with pytest.raises(StateMismatchError):
        store.load("next", "pfsr", "c", 0, "model-b")


def test_a_warm_start_from_nothing_names_what_there_is(store):
    save(store, 1, 1.0, 0)
    with pytest.raises(StateMissingError, match=r"'gone'.*runs in this store: run"):
        store.copy_states("gone", "next")


def test_only_the_owner_may_read_it(store):
    save(store, 1, 1.0, 0)
    with sqlite3.connect(store.path) as held:  # a connection keeps the two side files alive
        held.execute("SELECT * FROM states").fetchone()
        for file in store.path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    held.close()
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_two_processes_may_make_the_file_at_once(store):
    """The second one asks for write-ahead logging while the first still writes without it."""
    store.runs()
    first = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    first.execute("PRAGMA journal_mode = DELETE")
    first.execute("BEGIN IMMEDIATE")
    ready = threading.Timer(0.2, first.close)
    ready.start()
    assert store.runs() == []
    ready.join()


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from pfsr_core.serving.node_store import NodeStore

class Dying(dict):
    def items(self):
        for position, item in enumerate(super().items()):
            if position == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

states = Dying({name: {"x": torch.full((50_000,), 2.0)} for name in "abcd"})
marks = dict.fromkeys("abcd", "m")
last_rounds = dict.fromkeys("abcd", 1)
NodeStore(Path(sys.argv[1])).save("run", "pfsr", 2, marks, states, last_rounds=last_rounds)
"""


def test_a_kill_between_two_clients_leaves_the_round_before(store):
    before = {name: {"x": torch.full((50_000,), 1.0)} for name in "abcd"}
    store.save("run", "pfsr", 1, dict.fromkeys("abcd", "m"), before, last_rounds={})
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(store.path)]
    killed = subprocess.run(command, cwd=root, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    for name in "abcd":
        assert store.rounds("run", "pfsr", name) == [1]
        assert same(store.load("run", "pfsr", name, 1, "m"), before[name])


def test_an_error_in_the_middle_writes_nothing(store):
    broken = {"a": state(1.0), "b": {"x": "not a tensor"}}
    with pytest.raises(AttributeError):
        store.save("run", "pfsr", 1, dict.fromkeys("ab", MODEL), broken, last_rounds={})
    assert store.runs() == []


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "node-0.sqlite"
    path.write_bytes(b"these are my holiday photographs, do not overwrite" * 50)
    with pytest.raises(NodeStoreError, match="move it away"):
        save(NodeStore(path), 1, 1.0, 0)
    assert path.read_bytes().startswith(b"these are my holiday")


def test_the_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE mine (x)")
    file.close()
    with pytest.raises(NodeStoreError, match="another program"):
        save(NodeStore(path), 1, 1.0, 0)


def small_disk(monkeypatch, pages):
    """Every connection may use so many pages of 4096 bytes, as on a disk that is full then."""
    prepare = StoreFile._prepare

    def limited(self, file):
        prepare(self, file)
        file.execute(f"PRAGMA max_page_count = {pages}")

    monkeypatch.setattr(StoreFile, "_prepare", limited)


def test_a_full_disk_is_called_so_and_the_state_before_stays(store, monkeypatch):
    save(store, 1, 1.0, 0)
    large = {"c": {"x": torch.ones(100_000)}}
    with monkeypatch.context() as patch:
        small_disk(patch, 20)
        with pytest.raises(NodeStoreError, match="(?s)full.*unchanged.*make room") as raised:
            store.save("run", "pfsr", 2, {"c": MODEL}, large, last_rounds={"c": 1})
    assert "move it away" not in str(raised.value)
    assert same(store.load("run", "pfsr", "c", 1, MODEL), state(1.0))
    store.save("run", "pfsr", 2, {"c": MODEL}, large, last_rounds={"c": 1})
    assert store.rounds("run", "pfsr", "c") == [1, 2]


def test_a_store_that_may_not_be_written_is_called_so(tmp_path):
    path = tmp_path / "no-directory" / "node-0.sqlite"
    path.parent.touch()
    with pytest.raises(NodeStoreError, match="cannot be used now.*let its owner write"):
        save(NodeStore(path), 1, 1.0, 0)


def test_a_store_of_a_later_layout_is_refused(store):
    save(store, 1, 1.0, 0)
    with sqlite3.connect(store.path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()
    with pytest.raises(NodeStoreError, match="format 99"):
        store.runs()


def test_a_flipped_byte_is_noticed(store):
    save(store, 1, 1.0, 0)
    with sqlite3.connect(store.path) as file:
        blob = bytearray(file.execute("SELECT tensors FROM states").fetchone()[0])
        blob[-1] ^= 1
        file.execute("UPDATE states SET tensors = ?", (bytes(blob),))
    file.close()
    with pytest.raises(NodeStoreError, match="checksum"):
        store.load("run", "pfsr", "c", 1, MODEL)


def served(run="run", value=1.0):
    clients = {"c": ServedClient(state(value), {"user 7": [3, 1, 2]})}
    settings = {"model.max-length": 10}
    shared = {"w": torch.full((2,), value)}
    origin = ModelOrigin(run, "pfsr", 4, MODEL, settings)
    return Served(origin, ServedItems(("x", "ÿ"), {"x": "An item"}), shared, clients)


def test_a_served_model_is_whole(store):
    store.install(served())
    found = store.served()
    assert found.origin == ModelOrigin("run", "pfsr", 4, MODEL, {"model.max-length": 10})
    assert (found.items.ids, found.items.titles) == (("x", "ÿ"), {"x": "An item"})
    assert same(found.shared, {"w": torch.ones(2)})
    assert same(found.clients["c"].state, state(1.0))
    assert found.clients["c"].histories == {"user 7": [3, 1, 2]}


def test_the_newest_model_is_served_unless_a_run_is_named(store):
    store.install(served("old", 1.0))
    store.install(served("new", 2.0))
    assert store.served().origin.run == "new"
    assert store.served("old").origin.run == "old"


def test_installing_again_replaces(store):
    store.install(served(value=1.0))
    store.install(served(value=2.0))
    assert same(store.served("run").clients["c"].state, state(2.0))
    with sqlite3.connect(store.path) as file:
        assert file.execute("SELECT count(*) FROM served_clients").fetchone() == (1,)
    file.close()


def test_nothing_to_serve_says_so(store):
    with pytest.raises(StateMissingError, match="serves no model"):
        store.served()


def test_the_secret_is_drawn_once_and_differs_between_nodes(tmp_path: Path) -> None:
    first, second = NodeStore(tmp_path / "a.sqlite"), NodeStore(tmp_path / "b.sqlite")
    assert first.secret() == NodeStore(first.path).secret()
    assert len(first.secret()) == 32 and first.secret() != second.secret()
