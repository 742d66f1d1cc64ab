"""A node's store on a real disk that is full, or that nothing may be written to."""

from __future__ import annotations

import subprocess

import pytest
import torch

from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.sqlite_file import NodeStoreError

pytestmark = pytest.mark.deployment


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte. Skips, with the reason, where nothing can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def store(disk):
    """One client's state of round 1."""
    made = NodeStore(disk / "state" / "node-0.sqlite")
    save(made, 1, 20_000)
    return made


def save(store: NodeStore, round_: int, values: int) -> None:
    state = {"c": {"x": torch.full((values,), float(round_))}}
    store.save("run", "pfsr", round_, {"c": "m"}, state, last_rounds={"c": round_ - 1})


def assert_first_state(store: NodeStore) -> None:
    state = store.load("run", "pfsr", "c", 1, "m")
    assert state is not None
    assert torch.equal(state["x"], torch.full((20_000,), 1.0))


def test_a_state_that_does_not_fit_leaves_the_one_before(store):
    with pytest.raises(NodeStoreError, match="disk is full.*make room"):
        save(store, 2, 300_000)
    assert store.rounds("run", "pfsr", "c") == [1]
    assert_first_state(store)
    save(store, 2, 20_000)


def test_a_disk_without_any_room_is_an_error_and_no_fresh_start(disk, store):
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(NodeStoreError, match="make room"):
        save(store, 2, 20_000)
    with pytest.raises(NodeStoreError, match="make room"):
        store.load("run", "pfsr", "c", 1, "m")
    filler.unlink()
    assert_first_state(store)
    save(store, 2, 20_000)


def test_a_disk_that_is_read_only_is_an_error_and_no_fresh_start(disk, store):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(NodeStoreError, match="(?i)read-only.*let its owner write"):
        save(store, 2, 20_000)
    with pytest.raises(NodeStoreError, match="(?i)read-only"):
        store.load("run", "pfsr", "c", 1, "m")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert_first_state(store)
