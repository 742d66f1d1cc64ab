"""The file of a node's store: its tables, its transactions, its checksums.

Every write is one transaction with ``synchronous=FULL`` in WAL mode, so a process that is killed at
any instant leaves the old or the new version, never a part of one. Each blob carries its SHA-256.
Only the owner may read the file (mode 0600).
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pfsr_core.params import Params

APPLICATION_ID = 0x50465352  # tells the file from those of other programs
STORE_FORMAT = 2
BUSY_SECONDS = 30.0

SCHEMA = """
CREATE TABLE states (
    run TEXT, algorithm TEXT, client TEXT, round INTEGER,
    fingerprint TEXT NOT NULL, digest TEXT NOT NULL, tensors BLOB NOT NULL,
    PRIMARY KEY (run, algorithm, client, round)
) WITHOUT ROWID;
CREATE TABLE secret (one INTEGER PRIMARY KEY CHECK (one = 1), value BLOB NOT NULL);
CREATE TABLE served (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT, algorithm TEXT, round INTEGER, fingerprint TEXT NOT NULL,
    settings TEXT NOT NULL, catalogue TEXT NOT NULL,
    digest TEXT NOT NULL, tensors BLOB NOT NULL,
    UNIQUE (run, algorithm)
);
CREATE TABLE served_clients (
    number INTEGER REFERENCES served (number) ON DELETE CASCADE,
    client TEXT, histories TEXT NOT NULL, digest TEXT NOT NULL, tensors BLOB NOT NULL,
    PRIMARY KEY (number, client)
);
"""

USER_SCHEMA = """
CREATE TABLE events (
    number INTEGER REFERENCES served (number) ON DELETE CASCADE,
    client TEXT, user TEXT, place INTEGER,
    item INTEGER NOT NULL, seconds INTEGER NOT NULL,
    PRIMARY KEY (number, client, user, place)
) WITHOUT ROWID;
CREATE TABLE memories (
    number INTEGER REFERENCES served (number) ON DELETE CASCADE,
    client TEXT, user TEXT, weights TEXT NOT NULL, covered INTEGER NOT NULL, items TEXT NOT NULL,
    digest TEXT NOT NULL, tensors BLOB NOT NULL,
    PRIMARY KEY (number, client, user)
);
"""
UPGRADES = {1: USER_SCHEMA}  # statements that lead from a format to the next one


class NodeStoreError(RuntimeError):
    """A store that cannot be used as it is; the message names the file and the fix."""


class StateMissingError(NodeStoreError):
    """A version of a client's state that this store does not have."""


class StateMismatchError(NodeStoreError):
    """A state that was made by another model."""


@dataclass(frozen=True)
class StoreFile:
    """The file at ``path``; it and its directory are made at the first use.

    Every call opens and closes it, so that a value of this type may be copied to another process.
    Raises NodeStoreError when the file is not a store or is damaged.
    """

    path: Path

    def tensors(self, tensor_blob: bytes, digest: str) -> Params:
        """Undoes :func:`packed`.

        Raises:
            NodeStoreError: The bytes do not match their digest.
        """
        if hashlib.sha256(tensor_blob).hexdigest() == digest:
            try:
                return load_tensors(tensor_blob)
            except SafetensorError:
                pass
        raise self.damaged("a state does not match its checksum")

    def damaged(self, problem: object) -> NodeStoreError:
        """The error for a file that cannot be read."""
        return NodeStoreError(
            f"{self.path} cannot be used as a node store: {problem}. "
            f"Fix: restore the file from a backup, or move it away to begin with an empty one."
        )

    def changed(self) -> StateMissingError:
        """The error for a served model that was replaced or lost a user since it was opened."""
        return StateMissingError(
            f"{self.path} has changed: another served model, or a user less. Fix: open the served "
            f"model again."
        )

    def _unwritable(self, problem: object) -> NodeStoreError:
        return NodeStoreError(
            f"{self.path} cannot be used now: {problem}. Its content is unchanged. Fix: make "
            f"room on its disk, and let its owner write the file and its directory."
        )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection in a write transaction, which is undone when the block raises."""
        with self.open() as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
            except BaseException:
                if file.in_transaction:  # SQLite itself has rolled back when the disk was full
                    file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")

    @contextmanager
    def open(self) -> Iterator[sqlite3.Connection]:
        """A connection, closed when the block ends.

        Raises:
            NodeStoreError: The file is no store, is damaged, or cannot be used now.
        """
        try:
            _make_private(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            with closing(connection) as file:
                self._prepare(file)
                yield file
        except sqlite3.OperationalError as error:  # the disk or the rights, not the content
            raise self._unwritable(error) from error
        except sqlite3.DatabaseError as error:
            raise self.damaged(error) from error

    def _prepare(self, file: sqlite3.Connection) -> None:
        file.execute("PRAGMA foreign_keys = ON")
        file.execute("PRAGMA secure_delete = ON")  # not every SQLite does it by itself
        application_id = file.execute("PRAGMA application_id").fetchone()[0]
        if application_id != APPLICATION_ID:
            self._create(file)
        format_version = file.execute("PRAGMA user_version").fetchone()[0]
        if format_version in UPGRADES:
            format_version = self._upgrade(file)
        if format_version != STORE_FORMAT:
            raise self.damaged(
                f"it has format {format_version}, this program reads format {STORE_FORMAT}"
            )
        _write_ahead(file)
        file.execute("PRAGMA synchronous = FULL")

    def _create(self, file: sqlite3.Connection) -> None:
        file.execute("BEGIN IMMEDIATE")  # two processes may meet here: the second finds the tables
        application_id = file.execute("PRAGMA application_id").fetchone()[0]
        num_tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application_id == 0 and num_tables == 0:
            for sql_statement in (SCHEMA + USER_SCHEMA).split(";"):
                file.execute(sql_statement)
            file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            file.execute(f"PRAGMA user_version = {STORE_FORMAT}")
        elif application_id != APPLICATION_ID:
            raise self.damaged("it is a database of another program")
        file.execute("COMMIT")

    def _upgrade(self, file: sqlite3.Connection) -> int:
        """Brings an older format to this one; the content stays."""
        file.execute("BEGIN IMMEDIATE")  # another process may have done it meanwhile
        format_version: int = file.execute("PRAGMA user_version").fetchone()[0]
        while format_version in UPGRADES:
            for sql_statement in UPGRADES[format_version].split(";"):
                file.execute(sql_statement)
            format_version += 1
            file.execute(f"PRAGMA user_version = {format_version}")
        file.execute("COMMIT")
        return format_version


def _write_ahead(file: sqlite3.Connection) -> None:
    """Waits for a process that is creating the file; SQLite's own timeout does not cover that."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            file.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def _make_private(file_path: Path) -> None:
    """Creates the file before SQLite does: only its owner may read it."""
    file_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(file_path, os.O_CREAT | os.O_RDWR, 0o600))


def packed(tensors: Params) -> tuple[str, bytes]:
    """(SHA-256, safetensors bytes)."""
    tensor_blob = save_tensors(
        {tensor_name: tensor.contiguous() for tensor_name, tensor in tensors.items()}
    )
    return hashlib.sha256(tensor_blob).hexdigest(), tensor_blob
