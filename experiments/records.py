"""Records of the experiments: one for each arm and seed, added by many processes, read by tables.

A record is what one run of :mod:`experiments.run` found: metrics, the validation curve, cost,
its commit, and the rank of every user's test item. :mod:`experiments.record_files` says how records
are stored; a reader of this module sees dictionaries.

    store = RecordStore(Path("experiments/records"))
    store.append({"arm": "pfsr", "seed": 0, ...})   # in a worker
    store.merge()                                   # once, when the workers are done
    store.get("pfsr", 0)["test_means"]["seen-filtered/ndcg@10"]

A *collection* holds the records that were made on one kind of data, since an arm and a seed can be
run on each: ``main``, ``ml-latest-small`` and ``xmarket`` in this repository.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.record_files import (
    PENDING,
    PER_USER,
    Record,
    RecordKey,
    join_record,
    json_line,
    key_of,
    read_pending,
    read_records,
    read_summaries,
    split_record,
    write_records,
)
from pfsr_core.files import staged

RECORDS, MAIN = Path("experiments/records"), "main"


class RecordStore:
    """One collection of the records in a directory.

    A record is in the store from the moment that :meth:`append` returns; no crash at any later
    moment loses it. Any number of processes may append, merge and read at a time: they wait for
    one another. A directory that does not exist is an empty store.

    Args:
        directory: Where the files of the records are.
        collection: Which records to read, and to add to.
    """

    def __init__(self, directory: Path = RECORDS, collection: str = MAIN) -> None:
        """Reads nothing yet."""
        self.directory = directory
        self.collection = collection

    def __iter__(self) -> Iterator[Record]:
        """The records, in the order of their file names."""
        with _locked(self.directory, fcntl.LOCK_SH):
            records = read_records(self.directory)
        for key, stored in records.items():
            if key.collection == self.collection:
                yield _without_collection(join_record(stored))

    def keys(self) -> set[tuple[str, int]]:
        """Arm and seed of every record."""
        with _locked(self.directory, fcntl.LOCK_SH):
            keys = {*read_summaries(self.directory), *read_pending(self.directory)}
        return {(key.arm, key.seed) for key in keys if key.collection == self.collection}

    def get(self, arm: str, seed: int) -> Record:
        """One record.

        Raises:
            KeyError: There is none of this arm and seed.
        """
        with _locked(self.directory, fcntl.LOCK_SH):
            stored = read_records(self.directory)[RecordKey(self.collection, arm, seed)]
        return _without_collection(join_record(stored))

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a finished record atomically, as a pending file; it replaces an older one.

        Args:
            record: JSON values with ``arm`` and ``seed``. Metrics may have their old names.

        Raises:
            ValueError: The record cannot be stored without loss.
        """
        if "collection" in record:
            raise ValueError("a record holds no 'collection'. Fix: name it to the store.")
        content = {"collection": self.collection, **with_current_names(record)}
        split_record(content)
        path = self.directory / PENDING / key_of(content).file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.directory, fcntl.LOCK_EX), staged(path) as stage:
            stage.write_text(json_line(content), "utf-8")

    def merge(self) -> int:
        """Folds the pending records of all collections into the files that are committed.

        Returns:
            How many there were.
        """
        with _locked(self.directory, fcntl.LOCK_EX):
            pending = read_pending(self.directory)
            if pending:
                write_records(self.directory, read_records(self.directory))
            for key in pending:
                (self.directory / PENDING / key.file_name).unlink()
        return len(pending)


def with_current_names(record: Mapping[str, Any]) -> Record:
    """The record with today's names in place of those that its producers still use.

    Metrics ``excluded/`` and ``kept/`` become ``seen-filtered/`` and ``seen-included/``, ``views``
    become ``variants``, and ``kept``, the share of parameters that a mask held back, becomes
    ``mask_ratio``. Remove this function when the producers use these names.
    """
    return {
        _current_name(name): with_current_names(value)
        if isinstance(value, Mapping) and name not in PER_USER
        else value
        for name, value in record.items()
    }


def _current_name(name: str) -> str:
    prefix, slash, metric = name.partition("/")
    if slash:
        protocols = {"excluded": "seen-filtered", "kept": "seen-included"}
        return f"{protocols.get(prefix, prefix)}/{metric}"
    return {"views": "variants", "kept": "mask_ratio"}.get(name, name)


def _without_collection(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "collection"}


@contextmanager
def _locked(directory: Path, kind: int) -> Iterator[None]:
    """Holds a lock on the directory; where there is none, nothing is written or read."""
    if not directory.is_dir():
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
