"""What a node keeps between messages: its clients' private states. One SQLite file.

States are keyed by (run, algorithm, client, round): a node whose answer was lost continues from the
version that the server aggregated last, not from the one it trained last. A state belongs to a
model and to rows of its item table, named by their fingerprint; with another one it is refused. The
models that the node serves (:mod:`pfsr_core.serving.served_model`) are in the same file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pfsr_core.params import Params
from pfsr_core.serving.served_model import ClientModel, Served, read_served, write_served
from pfsr_core.serving.sqlite_file import StateMismatchError, StateMissingError, StoreFile, packed
from pfsr_core.serving.users import forget_user


@dataclass(frozen=True)
class NodeStore:
    """The store in the file ``path``; the file and its directory are created at the first use.

    Every call opens and closes the file, so that a value of this type may be copied to another
    process. Every call raises NodeStoreError when the file is no store or is damaged.
    """

    path: Path

    @property
    def _file(self) -> StoreFile:
        return StoreFile(self.path)

    def load(
        self, run: str, algorithm: str, client: str, round_: int, fingerprint: str
    ) -> Params | None:
        """The state that a client had after ``round_``; of round 0 a warm start's copy, or None.

        What is raised: see :meth:`load_many`.
        """
        states = self.load_many(run, algorithm, {client: round_}, {client: fingerprint})
        return states.get(client)

    def load_many(
        self, run: str, algorithm: str, rounds: Mapping[str, int], fingerprints: Mapping[str, str]
    ) -> dict[str, Params]:
        """The states of several clients.

        Args:
            run: Name of the run.
            algorithm: Name of the algorithm.
            rounds: By client, the round after which the state was saved; 0 for a warm start's
                copy. A client of round 0 without a state is left out.
            fingerprints: By client, the model and rows that its state must belong to.

        Raises:
            StateMissingError: There is no state of a later round than 0.
            StateMismatchError: Another model made a state.
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
        """32 random bytes that never leave this file, drawn at the first call.

        No server can compute what is derived from them, such as a private start.
        """
        with self._file.transaction() as file:
            fresh = secrets.token_bytes(32)
            file.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (fresh,))
            value: bytes = file.execute("SELECT value FROM secret").fetchone()[0]
        return value

    def save(
        self,
        run: str,
        algorithm: str,
        round_: int,
        fingerprints: Mapping[str, str],
        states: Mapping[str, Params],
        *,
        last_rounds: Mapping[str, int],
    ) -> None:
        """Writes the new states of some clients in one transaction.

        Two versions of each client are kept: this one, and the one of ``last_rounds`` that it was
        trained from, in case this one's answer is lost. So a node may save a round in several
        portions: if it is killed between two of them, it starts the round again from versions that
        are all there.

        Args:
            run: Name of the run.
            algorithm: Name of the algorithm.
            round_: The round that ended with these states.
            fingerprints: By client, the model and rows that its state belongs to.
            states: The new states by client.
            last_rounds: By client, the round of the version before.
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

        A second call changes nothing.

        Returns:
            How many states were copied.

        Raises:
            StateMissingError: There is none.
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
        """Deletes a run's states and served models; returns the number of states."""
        with self._file.transaction() as file:
            file.execute("DELETE FROM served WHERE run = ?", (run,))
            return file.execute("DELETE FROM states WHERE run = ?", (run,)).rowcount

    def install(
        self, served: Served, clients: Iterable[tuple[str, ClientModel]] | None = None
    ) -> None:
        """Keeps a model for serving; it replaces the one of the same run and algorithm.

        Args:
            served: The model.
            clients: Its clients one after the other, in place of ``served.clients``: so they need
                not be in memory together.
        """
        write_served(self._file, served, served.clients.items() if clients is None else clients)

    def served(self, run: str = "") -> Served:
        """The model installed last, or that of ``run``, with all clients of this node.

        Raises:
            StateMissingError: There is none.
        """
        return read_served(self._file, run)

    def forget(self, user: str) -> int:
        """Takes a user out of every served model; returns out of how many.

        The states of training stay: a run on data without the user makes new ones.
        """
        return forget_user(self._file, user)

    def _check_model(self, stored: str, expected: str, client: str, run: str) -> None:
        if stored != expected:
            raise StateMismatchError(
                f"{self.path}: the state of client {client!r} in run {run!r} belongs to model "
                f"{stored}, but this run trains model {expected}. Fix: restore the settings, the "
                f"data and the version it was made with, choose another run name, or forget it "
                f"with reset."
            )


def default_state_directory() -> Path:
    """Where nodes keep their stores unless told otherwise: $PFSR_HOME/state, else .pfsr/state."""
    return Path(os.environ.get("PFSR_HOME") or ".pfsr") / "state"
