"""What a node stores of the users of a served model: new interactions, and compressed histories.

A memory stands for the first items of a user's history as one model reads them. It is stored with
the digest of the weights that made it and of the items that it stands for; with other weights or
another history it is discarded and made again. It never leaves the store, and is deleted with the
user or the model.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pfsr_core.data.client_dataset import ItemArray
from pfsr_core.models.compressors import USERS, UserMemory
from pfsr_core.models.item_scorer import CODES, ROWS
from pfsr_core.models.parameter_names import BIAS, FACTORS, ITEMS, RESIDUAL
from pfsr_core.params import Params
from pfsr_core.serving.sqlite_file import StoreFile, packed

HELD_OUT = 2  # the last items of a stored history, which no model was trained on
Numbers = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class ServedUsers:
    """The users of the served model ``number`` in a store.

    Raises NodeStoreError when the file is damaged.
    """

    file: StoreFile
    number: int

    def append(self, client: str, user: str, codes: Sequence[int], seconds: int) -> None:
        """Adds item codes to the end of the user's history, all of them at ``seconds``.

        Raises:
            StateMissingError: The store does not serve this model to the user any more.
        """
        key = (self.number, client, user)
        with self.file.transaction() as file:
            if not self._serves(file, client, user):
                raise self.file.changed()
            count = "SELECT count(*) FROM events WHERE (number, client, user) = (?, ?, ?)"
            start = file.execute(count, key).fetchone()[0]
            rows = ((*key, start + place, int(code), seconds) for place, code in enumerate(codes))
            file.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)

    def added(self, client: str, user: str) -> list[tuple[int, int]]:
        """What was added to a user's history: item codes and their seconds, oldest first."""
        query = "SELECT item, seconds FROM events WHERE (number, client, user) = (?, ?, ?) "
        with self.file.open() as file:
            return file.execute(query + "ORDER BY place", (self.number, client, user)).fetchall()

    def memory(self, client: str, user: str, weights: str, history: ItemArray) -> UserMemory | None:
        """The memory of ``user``, None without one and where it is stale.

        Args:
            client: The user's client.
            user: Raw user id.
            weights: Digest of the weights that the memory must be made by.
            history: Item codes (n,), or (n, 2) with their seconds, that must begin with its items.
        """
        query = (
            "SELECT weights, covered, items, digest, tensors FROM memories "
            "WHERE (number, client, user) = (?, ?, ?)"
        )
        with self.file.open() as file:
            row = file.execute(query, (self.number, client, user)).fetchone()
        if row is None or row[0] != weights or row[1] > len(history):
            return None
        if row[2] != _digest_of(history[: row[1]]):
            return None
        return UserMemory(row[1], self.file.tensors(row[4], row[3]))

    def keep(
        self, client: str, user: str, weights: str, history: ItemArray, memory: UserMemory
    ) -> None:
        """Stores the memory of ``history`` in place of an older one.

        Nothing is stored where the user was deleted meanwhile, or another model replaced this one.
        """
        facts = (weights, memory.covered, _digest_of(history[: memory.covered]))
        row = (self.number, client, user, *facts, *packed(memory.tensors))
        with self.file.transaction() as file:
            if self._serves(file, client, user):
                values = ", ".join("?" * len(row))
                file.execute(f"INSERT OR REPLACE INTO memories VALUES ({values})", row)

    def _serves(self, file: sqlite3.Connection, client: str, user: str) -> bool:
        """Looks for the user's key in the text of :func:`write_histories`, which may be long.

        A quote inside a key has a backslash before it, so neither text can be part of a key.
        """
        query = "SELECT 1 FROM served_clients WHERE (number, client) = (?, ?) "
        query += "AND (instr(histories, ?) OR instr(histories, ?))"
        keys = (f"{before}{json.dumps(user)}: " for before in ("{", ", "))
        return file.execute(query, (self.number, client, *keys)).fetchone() is not None


def forget_user(store: StoreFile, user: str) -> int:
    """Takes a user out of all served models: history, memory, interactions and private row.

    A client without another user is deleted with all that it learnt; what parameters shared with
    other users learnt from this one stays. Deleted bytes are overwritten, also in the write-ahead
    log.

    Returns:
        Out of how many models.
    """
    with store.transaction() as file:
        for table in ("events", "memories"):
            file.execute(f"DELETE FROM {table} WHERE user = ?", (user,))
        query = "SELECT number, client, histories, settings "
        query += "FROM served_clients JOIN served USING (number)"
        rows = ((*row[:2], *read_histories(row[2]), row[3]) for row in file.execute(query))
        homes = [row for row in rows if user in row[2]]
        for number, client, histories, times, settings in homes:
            key, items = (number, client), json.loads(settings)["model.items"]
            if len(histories) == 1:
                file.execute("DELETE FROM served_clients WHERE (number, client) = (?, ?)", key)
                continue
            digest, blob = file.execute(
                "SELECT digest, tensors FROM served_clients WHERE (number, client) = (?, ?)", key
            ).fetchone()
            left = _without(user, histories, times, store.tensors(blob, digest), items)
            file.execute(
                "UPDATE served_clients SET histories = ?, digest = ?, tensors = ? "
                "WHERE (number, client) = (?, ?)",
                (*left, *key),
            )
    with store.open() as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return len({number for number, *_ in homes})


def write_histories(histories: Numbers, times: Numbers) -> str:
    """Item codes by user, and their seconds where they are known, as JSON."""
    known = [_whole(histories), _whole(times)]
    return json.dumps(known if times else known[0])


def read_histories(text: str) -> tuple[Numbers, Numbers]:
    """Histories and their times, as :func:`write_histories` wrote them.

    Without times they are histories only: so a store that was written before there were times is
    read as it is.
    """
    content = json.loads(text)
    return (content[0], content[1]) if isinstance(content, list) else (content, {})


def _whole(numbers: Numbers) -> dict[str, list[int]]:
    return {user: list(map(int, values)) for user, values in numbers.items()}


def trained_items(histories: Numbers) -> ItemArray:
    """Sorted codes of the items that a client with these whole histories has trained: (n,)."""
    parts = [np.array(codes[:-HELD_OUT], np.int64) for codes in histories.values()]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def weights_digest(params: Params) -> str:
    """SHA-256 of the values of all tensors, by name."""
    digest = hashlib.sha256()
    for name in sorted(params):
        digest.update(name.encode())
        digest.update(params[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _without(
    user: str, histories: Numbers, times: Numbers, state: Params, items: str
) -> tuple[str, str, bytes]:
    """(histories, digest, tensors) of a client without ``user``, and what was the user's alone.

    That is the user's private row, and the private rows of items that nobody else has trained,
    under whatever prefix an algorithm keeps them. Of PFedRec's own view the items that others have
    trained are left: whose the negatives are is not known.
    """
    place, before = list(histories).index(user) + 1, trained_items(histories)
    rest, rest_times = (
        {name: values for name, values in part.items() if name != user}
        for part in (histories, times)
    )
    after = trained_items(rest)
    names = (ITEMS,) if items == "private" else (RESIDUAL, FACTORS, BIAS)
    still = torch.from_numpy(np.concatenate([[True], np.isin(before, after)]))
    left = dict.fromkeys(names, still)
    left[USERS] = torch.arange(len(histories) + 1) != place
    state = {
        name: tensor[left[base]] if (base := name.rpartition("/")[2]) in left else tensor
        for name, tensor in state.items()
    }
    if CODES in state:
        view = torch.from_numpy(np.isin(state[CODES].numpy(), after))
        state |= {name: state[name][view] for name in (ROWS, CODES)}
    return write_histories(rest, rest_times), *packed(state)


def _digest_of(items: ItemArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(items, np.int64).tobytes()).hexdigest()
