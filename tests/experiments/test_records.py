"""The store of records: nothing is lost, by crashes and by many writers neither."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import record_files
from experiments.record_files import (
    RANKS,
    SUMMARIES,
    USERS,
    RecordKey,
    join_record,
    split_record,
)
from experiments.records import RecordStore, with_current_names
from pfsr_core.files import staged

Json = dict[str, Any]


def record(arm: str = "pfsr", seed: int = 0, rank: int = 3) -> Json:
    return {
        "arm": arm,
        "seed": seed,
        "test_means": {"seen-filtered/hr@10": 0.1 + rank, "users": 2.0},
        "ranks": {"u2": rank, "u1": 9},
        "lengths": {"u2": 5, "u1": 70_000},
        "history": [{"round": 3, "valid": 0.1}],
    }


def per_user_maps(users: list[str], values: list[int], with_lengths: bool) -> Json:
    maps = {"ranks": dict(zip(users, values, strict=False))}
    return {**maps, "lengths": dict.fromkeys(maps["ranks"], 7)} if with_lengths else maps


NAMES = st.text(min_size=1).filter(lambda name: "/" not in name)
PER_USER = st.builds(
    per_user_maps,
    st.lists(st.text(), max_size=4, unique=True),
    st.lists(st.integers(0, 2**31 - 1), min_size=4, max_size=4),
    st.booleans(),
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
PLAIN_NAMES = NAMES.filter(lambda name: name not in ("ranks", "lengths", "collection"))


def extended(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(PLAIN_NAMES, nodes, max_size=3)
    return (
        st.lists(nodes, max_size=2) | fields | st.builds(lambda a, b: {**a, **b}, fields, PER_USER)
    )


NODES = st.recursive(LEAVES, extended, max_leaves=8)
RECORDS = st.builds(
    lambda fields, arm, seed, maps: {**fields, "arm": arm, "seed": seed, **maps},
    st.dictionaries(PLAIN_NAMES, NODES, max_size=3),
    NAMES,
    st.integers(0, 99),
    PER_USER | st.just({}),
)


@given(RECORDS)
def test_a_record_comes_together_key_for_key(made: Json) -> None:
    stored = split_record(made)
    assert json.dumps(join_record(stored)) == json.dumps(made)


@settings(max_examples=30)
@given(st.lists(RECORDS, max_size=4))
def test_files_hold_what_was_written(tmp_path_factory: Any, made: list[Json]) -> None:
    folder = tmp_path_factory.mktemp("records")
    stored = {RecordKey("main", f"arm {i}", i): split_record(one) for i, one in enumerate(made)}
    for (collection, arm, seed), one in stored.items():
        one.summary.update(collection=collection, arm=arm, seed=seed)
    record_files.write_records(folder, stored)
    assert {key: one.summary for key, one in record_files.read_records(folder).items()} == {
        key: one.summary for key, one in stored.items()
    }
    assert record_files.read_records(folder).keys() == stored.keys()
    for key, one in record_files.read_records(folder).items():
        assert json.dumps(join_record(one)) == json.dumps(join_record(stored[key]))


def test_a_record_is_there_before_and_after_the_merge(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    assert store.keys() == set() and list(store) == [] and store.merge() == 0
    store.append(record())
    for merged in (1, 0):
        assert store.get("pfsr", 0) == record() and list(store) == [record()]
        assert store.keys() == {("pfsr", 0)}
        assert store.merge() == merged
    with pytest.raises(KeyError):
        store.get("pfsr", 1)


def test_collections_are_apart(tmp_path: Path) -> None:
    main, other = RecordStore(tmp_path), RecordStore(tmp_path, "xmarket")
    main.append(record(rank=1))
    other.append(record(rank=2))
    assert main.merge() == 2
    assert (main.get("pfsr", 0), other.get("pfsr", 0)) == (record(rank=1), record(rank=2))
    assert len(list(main)) == len(other.keys()) == 1


def test_a_later_record_replaces_an_earlier_one(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    for rank in (1, 2, 3):
        store.append(record(rank=rank))
        assert store.get("pfsr", 0) == record(rank=rank)
        if rank > 1:
            store.merge()
    assert list(store) == [record(rank=3)]


def test_files_do_not_depend_on_the_order_of_records(tmp_path: Path) -> None:
    for folder, seeds in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        store = RecordStore(tmp_path / folder)
        for seed in seeds:
            store.append(record(seed=seed))
            if folder == "b":
                store.merge()
        store.merge()
    for name in (SUMMARIES, RANKS, USERS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"collection": "main"},
        {"ranks": {"u1": 1.0}},
        {"ranks": {"u1": -1}},
        {"ranks": {"u1": 2**31}},
        {"ranks": {"u1": 1}, "lengths": {"u2": 1}},
        {"a/b": {"ranks": {"u1": 1}}},
    ],
)
def test_what_cannot_be_stored_is_refused_before_it_is_written(wrong: Json, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        RecordStore(tmp_path).append({"arm": "pfsr", "seed": 0, **wrong})
    assert not list(tmp_path.rglob("*"))


def test_ranks_that_are_missing_are_not_passed_over(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    store.append(record())
    store.merge()
    text = (tmp_path / SUMMARIES).read_text()
    (tmp_path / SUMMARIES).write_text(text.replace('"ranks": 2', '"ranks": 3'))
    with pytest.raises(ValueError, match=f"2 of 3 'ranks' found. Fix: restore {RANKS}"):
        store.get("pfsr", 0)


def test_old_names_are_replaced_and_users_are_left_alone(tmp_path: Path) -> None:
    old = {
        "arm": "pfsr",
        "seed": 0,
        "kept": 0.2,
        "ranks": {"views": 1, "excluded/x": 2},
        "views": {"global": {"test_means": {"excluded/mrr": 0.5, "kept/mrr": 0.25}}},
    }
    new = {
        "arm": "pfsr",
        "seed": 0,
        "mask_ratio": 0.2,
        "ranks": {"views": 1, "excluded/x": 2},
        "variants": {
            "global": {"test_means": {"seen-filtered/mrr": 0.5, "seen-included/mrr": 0.25}}
        },
    }
    RecordStore(tmp_path).append(old)
    assert RecordStore(tmp_path).get("pfsr", 0) == with_current_names(new) == new


class CrashError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", range(5))
def test_a_crash_in_a_merge_loses_nothing(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files are replaced and two are removed; the process ends before each of these."""
    store = RecordStore(tmp_path)
    store.append(record(rank=1))
    store.append(record(seed=2))
    store.merge()
    new = [record(rank=4), record(seed=1)]
    for one in new:
        store.append(one)
    done: list[str] = []

    def crashing(method: Any) -> Any:
        def call(path: Path, *args: Any, **options: Any) -> Any:
            if method is Path.unlink and options:  # what staged leaves
                return method(path, *args, **options)
            if len(done) == step:
                raise CrashError
            done.append(path.name)
            return method(path, *args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, crashing(getattr(Path, name)))
        with pytest.raises(CrashError):
            store.merge()
    expected = [*new, record(seed=2)]
    assert list(store) == expected
    store.merge()
    assert list(store) == expected and store.merge() == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        RANKS,
        SUMMARIES,
        USERS,
    ]


def test_a_worker_that_ends_while_it_writes_leaves_no_record(tmp_path: Path) -> None:
    pending = tmp_path / record_files.PENDING
    pending.mkdir()
    child = multiprocessing.get_context("spawn").Process(target=_end_in_a_write, args=(pending,))
    child.start()
    child.join()
    assert child.exitcode == 9 and len(list(pending.iterdir())) == 1
    store = RecordStore(tmp_path)
    assert store.keys() == set()
    store.append(record())
    assert store.merge() == 1 and list(store) == [record()]


def _end_in_a_write(pending: Path) -> None:
    with staged(pending / RecordKey("main", "pfsr", 0).file_name) as stage:
        stage.write_text('{"collection": "main", "arm": "pf')
        os._exit(9)


def test_workers_append_while_others_merge_and_read(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append_six, args=(tmp_path, i)) for i in range(2)]
    for worker in workers:
        worker.start()
    store, seen = RecordStore(tmp_path), set[tuple[str, int]]()
    while any(worker.is_alive() for worker in workers):
        store.merge()
        found = {(one["arm"], one["seed"]) for one in store}
        assert seen <= found
        seen = found
    store.merge()
    assert [worker.exitcode for worker in workers] == [0, 0]
    made = [record(f"arm {worker}", seed, rank=seed) for worker in range(2) for seed in range(6)]
    assert list(store) == made and store.merge() == 0


def _append_six(folder: Path, worker: int) -> None:
    store = RecordStore(folder)
    for seed in range(6):
        store.append(record(f"arm {worker}", seed, rank=seed))
        if seed % 3 == worker:
            store.merge()
