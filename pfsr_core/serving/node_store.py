"""What a node remembers: its clients' private states, and the model it serves. One SQLite file.

States are kept by (run, algorithm, client, round): a node whose answer was lost continues from the
version that the server last aggregated, not from the one it trained last. A state belongs to a
model and to rows of its item table, named by their fingerprint; any other refuses it.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from pfsr_core.items.text_vectors import ItemVectors
from pfsr_core.params import Params
from pfsr_core.serving.sqlite_file import StateMismatchError, StateMissingError, StoreFile, packed
from pfsr_core.serving.users import ServedUsers, forget_user, read_histories, write_histories

VECTORS = "item vectors"  # beside the shared tensors of a served model


class ClientPart(Protocol):
    """One client of a served model. ``histories``: raw user id -> item codes, oldest first.

    ``times``: raw user id -> seconds of the same interactions, where they are known and the model
    reads them.
    """

    @property
    def state(self) -> Params: ...

    @property
    def histories(self) -> Mapping[str, Sequence[int]]: ...

    @property
    def times(self) -> Mapping[str, Sequence[int]]: ...


@dataclass(frozen=True)
class ServedClient:
    """A client in memory."""

    state: Params
    histories: Mapping[str, Sequence[int]]
    times: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredClient:
    """A client in a store, whose state is read when it is asked for: a node may serve thousands."""

    read: Callable[[], Params]
    histories: Mapping[str, Sequence[int]]
    times: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def state(self) -> Params:
        """Raises NodeStoreError when it is damaged, or not that of these histories any more."""
        return self.read()


@dataclass(frozen=True)
class Served:
    """A model ready to recommend without a server.

    ``settings``: the flat settings of the run. ``item_ids[code - 1]`` is the raw id of an item.
    ``texts``: words about each item where item vectors are made from them, else empty. ``vectors``:
    item vectors that cannot be made from what is kept.
    ``secret``: the store's, where it has one; secret item tables start from it. ``users``: where
    what happens to its users is kept; None of a model that is in no store.
    """

    run: str
    algorithm: str
    round: int
    fingerprint: str
    settings: Mapping[str, Any]
    shared: Params
    item_ids: Sequence[str]
    titles: Mapping[str, str]
    clients: Mapping[str, ClientPart] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    texts: Sequence[str] = ()
    vectors: ItemVectors | None = None
    users: ServedUsers | None = None


@dataclass(frozen=True)
class NodeStore:
    """The store in the file ``path``; it and its directory are made at the first use.

    Every call opens and closes the file, so that a value of this type may be copied to another
    process. Raises NodeStoreError when the file is not a store or is damaged.
    """

    path: Path

    @property
    def _file(self) -> StoreFile:
        return StoreFile(self.path)

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
        with self._file.open() as file:
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
                states[client] = self._file.tensors(row[2], row[1])
        return states

    def secret(self) -> bytes:
        """32 random bytes that never leave this file; drawn at the first call.

        What is derived from them, such as a private start, no server can compute.
        """
        with self._file.transaction() as file:
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
            (*key, fingerprints[client], *packed(state))
            for key, (client, state) in zip(keys, states.items(), strict=True)
        )
        older = ((*key, last_rounds.get(key[2], 0)) for key in keys)
        with self._file.transaction() as file:
            file.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            file.executemany(
                "DELETE FROM states WHERE run = ? AND algorithm = ? AND client = ? "
                "AND round < ? AND round != ?",
                older,
            )

    def rounds(self, run: str, algorithm: str, client: str) -> list[int]:
        """Rounds whose state of ``client`` is kept, ascending."""
        query = "SELECT round FROM states WHERE run = ? AND algorithm = ? AND client = ?"
        with self._file.open() as file:
            rows = file.execute(query, (run, algorithm, client)).fetchall()
        return sorted(row[0] for row in rows)

    def copy_states(self, from_run: str, to_run: str) -> int:
        """Makes the newest states of ``from_run`` the first ones (round 0) of ``to_run``.

        Returns how many; a second call changes nothing. Raises StateMissingError without any.
        """
        with self._file.transaction() as file:
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
        with self._file.open() as file:
            return [row[0] for row in file.execute("SELECT DISTINCT run FROM states ORDER BY 1")]

    def reset(self, run: str) -> int:
        """Forgets a run: its states and its served models. Returns the number of states."""
        with self._file.transaction() as file:
            file.execute("DELETE FROM served WHERE run = ?", (run,))
            return file.execute("DELETE FROM states WHERE run = ?", (run,)).rowcount

    def install(
        self, served: Served, clients: Iterable[tuple[str, ClientPart]] | None = None
    ) -> None:
        """Keeps a model for serving; it replaces the one of the same run and algorithm.

        ``clients``: its clients one after the other, in place of those in ``served``.
        """
        clients = served.clients.items() if clients is None else clients
        words = {"titles": dict(served.titles), "texts": list(served.texts)}
        tensors = {**served.shared}
        if served.vectors is not None:
            words["vectors"] = [served.vectors.digest, served.vectors.method]
            tensors[VECTORS] = torch.from_numpy(served.vectors.rows)
        catalogue = json.dumps({"item_ids": list(served.item_ids), **words})
        names = (served.run, served.algorithm)
        facts = (served.round, served.fingerprint, json.dumps(dict(served.settings)), catalogue)
        with self._file.transaction() as file:
            file.execute("DELETE FROM served WHERE run = ? AND algorithm = ?", names)
            number = file.execute(
                "INSERT INTO served VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*names, *facts, *packed(tensors)),
            ).lastrowid
            rows = ((number, client, *_served_row(part)) for client, part in clients)
            file.executemany("INSERT INTO served_clients VALUES (?, ?, ?, ?, ?)", rows)

    def served(self, run: str = "") -> Served:
        """The model installed last, or that of ``run``, with all clients of this node.

        Raises StateMissingError when there is none.
        """
        columns = "number, run, algorithm, round, fingerprint, settings, catalogue, digest, tensors"
        with self._file.open() as file:
            file.execute("BEGIN")  # one model and its own clients, whoever writes meanwhile
            row = file.execute(
                f"SELECT {columns} FROM served WHERE ? IN ('', run) ORDER BY number DESC", (run,)
            ).fetchone()
            if row is None:
                raise StateMissingError(
                    f"{self.path} serves no model{f' of run {run!r}' if run else ''}. "
                    f"Fix: let a run finish on this node first."
                )
            query = "SELECT client, histories, digest FROM served_clients WHERE number = ?"
            clients = file.execute(query, row[:1]).fetchall()
            secret = file.execute("SELECT value FROM secret").fetchone()
        catalogue = json.loads(row[6])
        shared = self._file.tensors(row[8], row[7])
        rows, vectors = shared.pop(VECTORS, None), None
        if rows is not None:
            vectors = ItemVectors(rows.numpy(), *catalogue["vectors"])
        return Served(
            run=row[1],
            algorithm=row[2],
            round=row[3],
            fingerprint=row[4],
            settings=json.loads(row[5]),
            shared=shared,
            item_ids=tuple(catalogue["item_ids"]),
            titles=catalogue["titles"],
            texts=tuple(catalogue.get("texts", ())),
            clients={
                name: StoredClient(
                    partial(self._served_state, row[0], name, digest), *read_histories(text)
                )
                for name, text, digest in clients
            },
            secret=secret[0] if secret else b"",
            vectors=vectors,
            users=ServedUsers(self._file, row[0]),
        )

    def forget(self, user: str) -> int:
        """Takes a user out of every model that is served here; returns out of how many.

        States of training stay: a run whose data lack the user makes new ones.
        """
        return forget_user(self._file, user)

    def _served_state(self, number: int, client: str, digest: str) -> Params:
        query = "SELECT tensors FROM served_clients WHERE (number, client, digest) = (?, ?, ?)"
        with self._file.open() as file:
            row = file.execute(query, (number, client, digest)).fetchone()
        if row is None:
            raise self._file.changed()
        return self._file.tensors(row[0], digest)

    def _check_model(self, found: str, expected: str, client: str, run: str) -> None:
        if found != expected:
            raise StateMismatchError(
                f"{self.path}: the state of client {client!r} in run {run!r} belongs to model "
                f"{found}, but this run trains model {expected}. Fix: restore the settings, the "
                f"data and the version it was made with, choose another run name, or forget it "
                f"with reset."
            )


def default_state_directory() -> Path:
    """Where nodes remember unless they are told another place: $PFSR_HOME/state, ./.pfsr/state."""
    return Path(os.environ.get("PFSR_HOME") or ".pfsr") / "state"


def _served_row(part: ClientPart) -> tuple[str, str, bytes]:
    """(histories as JSON, SHA-256 and bytes of the state)."""
    return write_histories(part.histories, part.times), *packed(part.state)
