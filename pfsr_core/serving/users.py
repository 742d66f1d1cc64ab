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

    def append(
        self, client_name: str, user_id: str, item_codes: Sequence[int], seconds: int
    ) -> None:
        """Adds item codes to the end of the user's history, all of them at ``seconds``.

        Raises:
            StateMissingError: The store does not serve this model to the user any more.
        """
        user_key = (self.number, client_name, user_id)
        with self.file.transaction() as file:
            if not self._serves(file, client_name, user_id):
                raise self.file.changed()
            count_query = "SELECT count(*) FROM events WHERE (number, client, user) = (?, ?, ?)"
            num_stored = file.execute(count_query, user_key).fetchone()[0]
            event_rows = (
                (*user_key, num_stored + place, int(item_code), seconds)
                for place, item_code in enumerate(item_codes)
            )
            file.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", event_rows)

    def added(self, client_name: str, user_id: str) -> list[tuple[int, int]]:
        """What was added to a user's history: item codes and their seconds, oldest first."""
        sql_query = "SELECT item, seconds FROM events WHERE (number, client, user) = (?, ?, ?) "
        with self.file.open() as file:
            return file.execute(
                sql_query + "ORDER BY place", (self.number, client_name, user_id)
            ).fetchall()

    def memory(
        self, client_name: str, user_id: str, weights: str, history: ItemArray
    ) -> UserMemory | None:
        """The memory of ``user_id``, None without one and where it is stale.

        Args:
            client_name: The user's client.
            user_id: Raw user id.
            weights: Digest of the weights that the memory must be made by.
            history: Item codes (n,), or (n, 2) with their seconds, that must begin with its items.
        """
        sql_query = (
            "SELECT weights, covered, items, digest, tensors FROM memories "
            "WHERE (number, client, user) = (?, ?, ?)"
        )
        with self.file.open() as file:
            memory_row = file.execute(sql_query, (self.number, client_name, user_id)).fetchone()
        if memory_row is None or memory_row[0] != weights or memory_row[1] > len(history):
            return None
        if memory_row[2] != _digest_of(history[: memory_row[1]]):
            return None
        return UserMemory(memory_row[1], self.file.tensors(memory_row[4], memory_row[3]))

    def keep(
        self,
        client_name: str,
        user_id: str,
        weights: str,
        history: ItemArray,
        user_memory: UserMemory,
    ) -> None:
        """Stores the memory of ``history`` in place of an older one.

        Nothing is stored where the user was deleted meanwhile, or another model replaced this one.
        """
        memory_facts = (weights, user_memory.covered, _digest_of(history[: user_memory.covered]))
        memory_row = (
            self.number,
            client_name,
            user_id,
            *memory_facts,
            *packed(user_memory.tensors),
        )
        with self.file.transaction() as file:
            if self._serves(file, client_name, user_id):
                values = ", ".join("?" * len(memory_row))
                file.execute(f"INSERT OR REPLACE INTO memories VALUES ({values})", memory_row)

    def _serves(self, file: sqlite3.Connection, client_name: str, user_id: str) -> bool:
        """Looks for the user's key in the text of :func:`write_histories`, which may be long.

        A quote inside a key has a backslash before it, so neither text can be part of a key.
        """
        sql_query = "SELECT 1 FROM served_clients WHERE (number, client) = (?, ?) "
        sql_query += "AND (instr(histories, ?) OR instr(histories, ?))"
        json_keys = (f"{json_prefix}{json.dumps(user_id)}: " for json_prefix in ("{", ", "))
        return (
            file.execute(sql_query, (self.number, client_name, *json_keys)).fetchone() is not None
        )


def forget_user(store: StoreFile, user_id: str) -> int:
    """Takes a user out of all served models: history, memory, interactions and private row.

    A client without another user is deleted with all that it learnt; what parameters shared with
    other users learnt from this one stays. Deleted bytes are overwritten, also in the write-ahead
    log.

    Returns:
        Out of how many models.
    """
    with store.transaction() as file:
        for table_name in ("events", "memories"):
            file.execute(f"DELETE FROM {table_name} WHERE user = ?", (user_id,))
        served_clients = file.execute(
            "SELECT number, client, histories, settings "
            "FROM served_clients JOIN served USING (number)"
        )
        client_rows = [
            (model_number, client_name, *read_histories(histories_json), settings_json)
            for model_number, client_name, histories_json, settings_json in served_clients
        ]
        home_rows = [row for row in client_rows if user_id in row[2]]
        for model_number, client_name, histories, times, settings_json in home_rows:
            client_key = (model_number, client_name)
            item_mode = json.loads(settings_json)["model.items"]
            if len(histories) == 1:
                file.execute(
                    "DELETE FROM served_clients WHERE (number, client) = (?, ?)", client_key
                )
                continue
            state_digest, tensor_blob = file.execute(
                "SELECT digest, tensors FROM served_clients WHERE (number, client) = (?, ?)",
                client_key,
            ).fetchone()
            new_columns = _without_user(
                user_id, histories, times, store.tensors(tensor_blob, state_digest), item_mode
            )
            file.execute(
                "UPDATE served_clients SET histories = ?, digest = ?, tensors = ? "
                "WHERE (number, client) = (?, ?)",
                (*new_columns, *client_key),
            )
    with store.open() as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return len({model_number for model_number, *_ in home_rows})


def write_histories(user_histories: Numbers, user_times: Numbers) -> str:
    """Item codes by user, and their seconds where they are known, as JSON."""
    json_lists = [_whole(user_histories), _whole(user_times)]
    return json.dumps(json_lists if user_times else json_lists[0])


def read_histories(histories_json: str) -> tuple[Numbers, Numbers]:
    """Histories and their times, as :func:`write_histories` wrote them.

    Without times they are histories only: so a store that was written before there were times is
    read as it is.
    """
    content = json.loads(histories_json)
    return (content[0], content[1]) if isinstance(content, list) else (content, {})


def _whole(user_numbers: Numbers) -> dict[str, list[int]]:
    return {user: list(map(int, values)) for user, values in user_numbers.items()}


def trained_items(user_histories: Numbers) -> ItemArray:
    """Sorted codes of the items that a client with these whole histories has trained: (n,)."""
    trained_codes = [
        np.array(item_codes[:-HELD_OUT], np.int64) for item_codes in user_histories.values()
    ]
    return np.unique(np.concatenate([np.empty(0, np.int64), *trained_codes]))


def weights_digest(params: Params) -> str:
    """SHA-256 of the values of all tensors, by name."""
    digest = hashlib.sha256()
    for tensor_name in sorted(params):
        digest.update(tensor_name.encode())
        digest.update(params[tensor_name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _without_user(
    user_id: str, histories: Numbers, times: Numbers, client_state: Params, item_mode: str
) -> tuple[str, str, bytes]:
    """(histories, digest, tensors) of a client without ``user_id``, and what was the user's alone.

    That is the user's private row, and the private rows of items that no other user has trained,
    under whatever prefix an algorithm keeps them. Of PFedRec's own view the items that others have
    trained are left: whose the negatives are is not known.
    """
    user_row, trained_before = list(histories).index(user_id) + 1, trained_items(histories)
    other_histories, other_times = (
        {other: values for other, values in by_user.items() if other != user_id}
        for by_user in (histories, times)
    )
    trained_after = trained_items(other_histories)
    item_tensors = (ITEMS,) if item_mode == "private" else (RESIDUAL, FACTORS, BIAS)
    kept_items = torch.from_numpy(np.concatenate([[True], np.isin(trained_before, trained_after)]))
    kept_rows = dict.fromkeys(item_tensors, kept_items)
    kept_rows[USERS] = torch.arange(len(histories) + 1) != user_row
    client_state = {
        tensor_name: tensor[kept_rows[base_name]]
        if (base_name := tensor_name.rpartition("/")[2]) in kept_rows
        else tensor
        for tensor_name, tensor in client_state.items()
    }
    if CODES in client_state:
        kept_codes = torch.from_numpy(np.isin(client_state[CODES].numpy(), trained_after))
        client_state |= {
            tensor_name: client_state[tensor_name][kept_codes] for tensor_name in (ROWS, CODES)
        }
    return write_histories(other_histories, other_times), *packed(client_state)


def _digest_of(item_codes: ItemArray) -> str:
    return hashlib.sha256(np.ascontiguousarray(item_codes, np.int64).tobytes()).hexdigest()
