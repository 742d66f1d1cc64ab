"""What a node remembers: its clients' private states, and the model it serves. One SQLite file.

The file is the node's own (mode 0600). States are kept by (run, algorithm, client, round): a node
whose answer was lost continues from the version that the server last aggregated, not from the one
it trained last. A state belongs to a model, named by its fingerprint; another model refuses it.

Every write is one transaction with ``synchronous=FULL`` in WAL mode, so a process killed at any
instant leaves the old or the new version, never a half. Each blob carries its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pfsr_core.params import Params

APPLICATION_ID = 0x50465352  # marks the file as ours
VERSION = 1
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


class NodeStoreError(RuntimeError):
    """A store that cannot be used as it is; the message names the file and the fix."""


class StateMissingError(NodeStoreError):
    """A version of a client's state that this store does not have."""


class StateMismatchError(NodeStoreError):
    """A state that was made by another model."""


@dataclass(frozen=True)
class ServedClient:
    """One client of a served model. ``histories``: raw user id -> item codes, oldest first."""

    state: Params
    histories: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Served:
    """A model ready to recommend without a server.

    ``settings``: the flat settings of the run. ``item_ids[code - 1]`` is the raw id of an item.
    ``secret``: the store's, where it has one; secret item tables start from it.
    """

    run: str
    algorithm: str
    round: int
    fingerprint: str
    settings: Mapping[str, Any]
    shared: Params
    item_ids: Sequence[str]
    titles: Mapping[str, str]
    clients: Mapping[str, ServedClient] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class NodeStore:
    """The store in the file ``path``; it and its directory are made at the first use.

    Every call opens and closes the file, so that a value of this type may be copied to another
    process. Raises NodeStoreError when the file is not a store or is damaged.
    """

    path: Path

    def load(
        self, run: str, algorithm: str, client: str, round_: int, fingerprint: str
    ) -> Params | None:
        """The state saved in exactly ``round_``. Round 0, none yet: None, or a warm start's copy.

        Raises StateMissingError, or StateMismatchError when another model made it.
        """
        found = self.load_many(run, algorithm, {client: round_}, {client: fingerprint})
        return found.get(client)

    def load_many(
        self, run: str, algorithm: str, rounds: Mapping[str, int], fingerprints: Mapping[str, str]
    ) -> dict[str, Params]:
        """The states of the clients in ``rounds``, as :meth:`load`; those without one are left out.

        ``fingerprints``: by client, the model and rows that its state must belong to.
        """
        query = "SELECT fingerprint, digest, tensors FROM states WHERE (%s) = (?, ?, ?, ?)"
        query %= "run, algorithm, client, round"
        states = {}
        with self._open() as file:
            for client, round_ in rounds.items():
                row = file.execute(query, (run, algorithm, client, round_)).fetchone()
                if row is None and round_ == 0:
                    continue
                if row is None:
                    raise StateMissingError(
                        f"{self.path} has no state of client {client!r} ({algorithm}, run {run!r}) "
                        f"from round {round_}. Fix: give this node its own store back, or start a "
                        f"new run."
                    )
                self._check_model(row[0], fingerprints[client], client, run)
                states[client] = self._tensors(row[2], row[1])
        return states

    def secret(self) -> bytes:
        """32 random bytes that never leave this file; drawn at the first call.

        What is derived from them, such as a private start, no server can compute.
        """
        with self._transaction() as file:
            fresh = secrets.token_bytes(32)
            file.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (fresh,))
            found: bytes = file.execute("SELECT value FROM secret").fetchone()[0]
        return found

    def save(  # noqa: PLR0913 - one transaction needs all of its key
        self,
        run: str,
        algorithm: str,
        round_: int,
        fingerprints: Mapping[str, str],
        states: Mapping[str, Params],
        last_rounds: Mapping[str, int],
    ) -> None:
        """Writes the new states of all these clients in one transaction.

        Keeps two versions of each client: this one, and the one of ``last_rounds`` it came from,
        in case that this one's answer is lost. So a node may save a round in several portions: one
        that is killed between two of them starts the round again from versions that are all there.
        """
        keys = [(run, algorithm, client, round_) for client in states]
        rows = (
            (*key, fingerprints[client], *_packed(state))
            for key, (client, state) in zip(keys, states.items(), strict=True)
        )
        older = ((*key, last_rounds.get(key[2], 0)) for key in keys)
        with self._transaction() as file:
            file.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            file.executemany(
                "DELETE FROM states WHERE run = ? AND algorithm = ? AND client = ? "
                "AND round < ? AND round != ?",
                older,
            )

    def rounds(self, run: str, algorithm: str, client: str) -> list[int]:
        """Rounds whose state of ``client`` is kept, ascending."""
        query = "SELECT round FROM states WHERE run = ? AND algorithm = ? AND client = ?"
        with self._open() as file:
            rows = file.execute(query, (run, algorithm, client)).fetchall()
        return sorted(row[0] for row in rows)

    def copy_states(self, from_run: str, to_run: str) -> int:
        """Makes the newest states of ``from_run`` the first ones (round 0) of ``to_run``.

        Returns how many; a second call changes nothing. Raises StateMissingError without any.
        """
        with self._transaction() as file:
            count = file.execute(
                "INSERT OR IGNORE INTO states "
                "SELECT ?, algorithm, client, 0, fingerprint, digest, tensors FROM states AS old "
                "WHERE run = ? AND round = (SELECT max(round) FROM states WHERE run = old.run "
                "AND algorithm = old.algorithm AND client = old.client)",
                (to_run, from_run),
            ).rowcount
            known = file.execute("SELECT 1 FROM states WHERE run = ?", (from_run,)).fetchone()
        if known is None:
            raise StateMissingError(
                f"{self.path} has no state of run {from_run!r}. Fix: check run.warm-start; "
                f"runs in this store: {', '.join(self.runs()) or 'none'}."
            )
        return count

    def runs(self) -> list[str]:
        """Names of the runs with states in this store, sorted."""
        with self._open() as file:
            return [row[0] for row in file.execute("SELECT DISTINCT run FROM states ORDER BY 1")]

    def reset(self, run: str) -> int:
        """Forgets a run: its states and its served models. Returns the number of states."""
        with self._transaction() as file:
            file.execute("DELETE FROM served WHERE run = ?", (run,))
            return file.execute("DELETE FROM states WHERE run = ?", (run,)).rowcount

    def install(self, served: Served) -> None:
        """Keeps a model for serving; it replaces the one of the same run and algorithm."""
        catalogue = json.dumps({"item_ids": list(served.item_ids), "titles": dict(served.titles)})
        names = (served.run, served.algorithm)
        facts = (served.round, served.fingerprint, json.dumps(dict(served.settings)), catalogue)
        with self._transaction() as file:
            file.execute("DELETE FROM served WHERE run = ? AND algorithm = ?", names)
            number = file.execute(
                "INSERT INTO served VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*names, *facts, *_packed(served.shared)),
            ).lastrowid
            for client, part in served.clients.items():
                histories = {user: list(map(int, codes)) for user, codes in part.histories.items()}
                file.execute(
                    "INSERT INTO served_clients VALUES (?, ?, ?, ?, ?)",
                    (number, client, json.dumps(histories), *_packed(part.state)),
                )

    def served(self, run: str = "") -> Served:
        """The model installed last, or that of ``run``, with all clients of this node.

        Raises StateMissingError when there is none.
        """
        columns = "number, run, algorithm, round, fingerprint, settings, catalogue, digest, tensors"
        with self._open() as file:
            row = file.execute(
                f"SELECT {columns} FROM served WHERE ? IN ('', run) ORDER BY number DESC", (run,)
            ).fetchone()
            if row is None:
                raise StateMissingError(
                    f"{self.path} serves no model{f' of run {run!r}' if run else ''}. "
                    f"Fix: let a run finish on this node first."
                )
            query = "SELECT client, histories, digest, tensors FROM served_clients WHERE number = ?"
            clients = file.execute(query, row[:1]).fetchall()
            secret = file.execute("SELECT value FROM secret").fetchone()
        catalogue = json.loads(row[6])
        return Served(
            run=row[1],
            algorithm=row[2],
            round=row[3],
            fingerprint=row[4],
            settings=json.loads(row[5]),
            shared=self._tensors(row[8], row[7]),
            item_ids=tuple(catalogue["item_ids"]),
            titles=catalogue["titles"],
            clients={
                name: ServedClient(self._tensors(tensors, digest), json.loads(histories))
                for name, histories, digest, tensors in clients
            },
            secret=secret[0] if secret else b"",
        )

    def _check_model(self, found: str, expected: str, client: str, run: str) -> None:
        if found != expected:
            raise StateMismatchError(
                f"{self.path}: the state of client {client!r} in run {run!r} belongs to model "
                f"{found}, but this run trains model {expected}. Fix: restore the settings, the "
                f"data and the version it was made with, choose another run name, or forget it "
                f"with reset."
            )

    def _tensors(self, blob: bytes, digest: str) -> Params:
        if hashlib.sha256(blob).hexdigest() == digest:
            try:
                return load_tensors(blob)
            except SafetensorError:
                pass
        raise self._damaged("a state does not match its checksum")

    def _damaged(self, problem: object) -> NodeStoreError:
        return NodeStoreError(
            f"{self.path} cannot be used as a node store: {problem}. "
            f"Fix: restore the file from a backup, or move it away to begin with an empty one."
        )

    def _unwritable(self, problem: object) -> NodeStoreError:
        return NodeStoreError(
            f"{self.path} cannot be used now: {problem}. What it remembers is as it was. Fix: make "
            f"room on its disk, and let its owner write the file and its directory."
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._open() as file:
            file.execute("BEGIN IMMEDIATE")
            try:
                yield file
            except BaseException:
                if file.in_transaction:  # SQLite itself has rolled back when the disk was full
                    file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
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
            raise self._damaged(error) from error

    def _prepare(self, file: sqlite3.Connection) -> None:
        file.execute("PRAGMA foreign_keys = ON")
        mark = file.execute("PRAGMA application_id").fetchone()[0]
        if mark != APPLICATION_ID:
            self._create(file)
        version = file.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise self._damaged(f"it has layout {version}, this program reads layout {VERSION}")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = FULL")

    def _create(self, file: sqlite3.Connection) -> None:
        file.execute("BEGIN IMMEDIATE")  # two processes may meet here: the second finds the tables
        mark = file.execute("PRAGMA application_id").fetchone()[0]
        tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if mark == 0 and tables == 0:
            for statement in SCHEMA.split(";"):
                file.execute(statement)
            file.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            file.execute(f"PRAGMA user_version = {VERSION}")
        elif mark != APPLICATION_ID:
            raise self._damaged("it is a database of another program")
        file.execute("COMMIT")


def default_state_directory() -> Path:
    """Where nodes remember unless they are told another place: $PFSR_HOME/state, ./.pfsr/state."""
    return Path(os.environ.get("PFSR_HOME") or ".pfsr") / "state"


def _make_private(path: Path) -> None:
    """Creates the file before SQLite does: only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


def _packed(tensors: Params) -> tuple[str, bytes]:
    """(SHA-256, safetensors bytes)."""
    blob = save_tensors({name: tensor.contiguous() for name, tensor in tensors.items()})
    return hashlib.sha256(blob).hexdigest(), blob
