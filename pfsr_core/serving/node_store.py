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
        self, run_name: str, algorithm_name: str, client_name: str, round_: int, fingerprint: str
    ) -> Params | None:
        """The state that a client had after ``round_``; of round 0 a warm start's copy, or None.

        What is raised: see :meth:`load_many`.
        """
        client_states = self.load_many(
            run_name, algorithm_name, {client_name: round_}, {client_name: fingerprint}
        )
        return client_states.get(client_name)

    def load_many(
        self,
        run_name: str,
        algorithm_name: str,
        client_rounds: Mapping[str, int],
        fingerprints: Mapping[str, str],
    ) -> dict[str, Params]:
        """The states of several clients.

        Args:
            run_name: Name of the run.
            algorithm_name: Name of the algorithm.
            client_rounds: By client, the round after which the state was saved; 0 for a warm
                start's copy. A client of round 0 without a state is left out.
            fingerprints: By client, the model and rows that its state must belong to.

        Raises:
            StateMissingError: There is no state of a later round than 0.
            StateMismatchError: Another model made a state.
        """
        sql_query = "SELECT fingerprint, digest, tensors FROM states WHERE (%s) = (?, ?, ?, ?)"
        sql_query %= "run, algorithm, client, round"
        client_states = {}
        with self._file.open() as file:
            for client_name, round_ in client_rounds.items():
                state_row = file.execute(
                    sql_query, (run_name, algorithm_name, client_name, round_)
                ).fetchone()
                if state_row is None and round_ == 0:
                    continue
                if state_row is None:
                    raise StateMissingError(
                        f"{self.path} has no state of client {client_name!r} "
                        f"({algorithm_name}, run {run_name!r}) from round {round_}. Fix: give "
                        f"this node its own store back, or start a new run."
                    )
                self._check_model(state_row[0], fingerprints[client_name], client_name, run_name)
                client_states[client_name] = self._file.tensors(state_row[2], state_row[1])
        return client_states

    def secret(self) -> bytes:
        """32 random bytes that never leave this file, drawn at the first call.

        No server can compute what is derived from them, such as a private start.
        """
        with self._file.transaction() as file:
            new_secret = secrets.token_bytes(32)
            file.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (new_secret,))
            stored_secret: bytes = file.execute("SELECT value FROM secret").fetchone()[0]
        return stored_secret

    def save(
        self,
        run_name: str,
        algorithm_name: str,
        round_: int,
        fingerprints: Mapping[str, str],
        client_states: Mapping[str, Params],
        *,
        last_rounds: Mapping[str, int],
    ) -> None:
        """Writes the new states of some clients in one transaction.

        Two versions of each client are kept: this one, and the one of ``last_rounds`` that it was
        trained from, in case this one's answer is lost. So a node may save a round in several
        portions: if it is killed between two of them, it starts the round again from versions that
        are all there.

        Args:
            run_name: Name of the run.
            algorithm_name: Name of the algorithm.
            round_: The round that ended with these states.
            fingerprints: By client, the model and rows that its state belongs to.
            client_states: The new states by client.
            last_rounds: By client, the round of the version before.
        """
        state_keys = [
            (run_name, algorithm_name, client_name, round_) for client_name in client_states
        ]
        state_rows = (
            (*state_key, fingerprints[client_name], *packed(client_state))
            for state_key, (client_name, client_state) in zip(
                state_keys, client_states.items(), strict=True
            )
        )
        older_keys = ((*state_key, last_rounds.get(state_key[2], 0)) for state_key in state_keys)
        with self._file.transaction() as file:
            file.executemany(
                "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?, ?, ?)", state_rows
            )
            file.executemany(
                "DELETE FROM states WHERE run = ? AND algorithm = ? AND client = ? "
                "AND round < ? AND round != ?",
                older_keys,
            )

    def rounds(self, run_name: str, algorithm_name: str, client_name: str) -> list[int]:
        """Rounds whose state of ``client_name`` is kept, ascending."""
        sql_query = "SELECT round FROM states WHERE run = ? AND algorithm = ? AND client = ?"
        with self._file.open() as file:
            state_rows = file.execute(sql_query, (run_name, algorithm_name, client_name)).fetchall()
        return sorted(state_row[0] for state_row in state_rows)

    def copy_states(self, from_run: str, to_run: str) -> int:
        """Makes the newest states of ``from_run`` the first ones (round 0) of ``to_run``.

        A second call changes nothing.

        Returns:
            How many states were copied.

        Raises:
            StateMissingError: There is none.
        """
        with self._file.transaction() as file:
            num_copied = file.execute(
                "INSERT OR IGNORE INTO states "
                "SELECT ?, algorithm, client, 0, fingerprint, digest, tensors FROM states AS old "
                "WHERE run = ? AND round = (SELECT max(round) FROM states WHERE run = old.run "
                "AND algorithm = old.algorithm AND client = old.client)",
                (to_run, from_run),
            ).rowcount
            known_state = file.execute("SELECT 1 FROM states WHERE run = ?", (from_run,)).fetchone()
        if known_state is None:
            raise StateMissingError(
                f"{self.path} has no state of run {from_run!r}. Fix: check run.warm-start; "
                f"runs in this store: {', '.join(self.runs()) or 'none'}."
            )
        return num_copied

    def runs(self) -> list[str]:
        """Names of the runs with states in this store, sorted."""
        with self._file.open() as file:
            return [row[0] for row in file.execute("SELECT DISTINCT run FROM states ORDER BY 1")]

    def reset(self, run_name: str) -> int:
        """Deletes a run's states and served models; returns the number of states."""
        with self._file.transaction() as file:
            file.execute("DELETE FROM served WHERE run = ?", (run_name,))
            return file.execute("DELETE FROM states WHERE run = ?", (run_name,)).rowcount

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

    def served(self, run_name: str = "") -> Served:
        """The model installed last, or that of ``run_name``, with all clients of this node.

        Raises:
            StateMissingError: There is none.
        """
        return read_served(self._file, run_name)

    def forget(self, user_id: str) -> int:
        """Takes a user out of every served model; returns out of how many.

        The states of training stay: a run on data without the user makes new ones.
        """
        return forget_user(self._file, user_id)

    def _check_model(
        self, stored_fingerprint: str, expected_fingerprint: str, client_name: str, run_name: str
    ) -> None:
        if stored_fingerprint != expected_fingerprint:
            raise StateMismatchError(
                f"{self.path}: the state of client {client_name!r} in run {run_name!r} belongs to "
                f"model {stored_fingerprint}, but this run trains model {expected_fingerprint}. "
                f"Fix: restore the settings, the data and the version it was made with, choose "
                f"another run name, or forget it with reset."
            )


def default_state_directory() -> Path:
    """The default directory of the nodes' stores: $PFSR_HOME/state, else .pfsr/state."""
    return Path(os.environ.get("PFSR_HOME") or ".pfsr") / "state"
