"""A served model: where it comes from, its items, its shared parameters, and its clients.

A node keeps it in its store (:class:`pfsr_core.serving.node_store.NodeStore`), and a run without a
network in a directory (:mod:`pfsr_core.runs.model_files`). Recommending needs nothing else: no
server, no network, no training data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from pfsr_core.items.text_vectors import ItemVectors
from pfsr_core.params import Params
from pfsr_core.serving.sqlite_file import StateMissingError, StoreFile, packed
from pfsr_core.serving.users import ServedUsers, read_histories, write_histories

VECTORS_NAME = "item vectors"  # name of the item vectors among the shared tensors of a stored model


class RecommendationError(ValueError):
    """A question to a served model that cannot be answered; says what can be asked instead."""


class ClientModel(Protocol):
    """One client of a served model."""

    @property
    def state(self) -> Params:
        """The client's private state."""

    @property
    def histories(self) -> Mapping[str, Sequence[int]]:
        """Item codes by raw user id, oldest first."""

    @property
    def times(self) -> Mapping[str, Sequence[int]]:
        """Seconds of the same interactions, where they are known and the model reads them."""


@dataclass(frozen=True)
class ServedClient:
    """A :class:`ClientModel` whose state is in memory."""

    state: Params
    histories: Mapping[str, Sequence[int]]
    times: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredClient:
    """A :class:`ClientModel` whose state is read from its store when it is asked for.

    A node may serve thousands of clients.
    """

    read: Callable[[], Params]
    histories: Mapping[str, Sequence[int]]
    times: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def state(self) -> Params:
        """The private state.

        Raises:
            NodeStoreError: The stored state is damaged, or belongs to other histories by now.
        """
        return self.read()


@dataclass(frozen=True)
class ModelOrigin:
    """Where a model comes from.

    Attributes:
        run: Name of the run that trained it.
        algorithm: Name of the federated algorithm.
        round: The round whose shared parameters it has.
        fingerprint: What the assembled model must have, see ``Assembly.fingerprint``.
        settings: The flat settings of the run.
    """

    run: str
    algorithm: str
    round: int
    fingerprint: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ServedItems:
    """The items of a served model.

    Attributes:
        ids: Raw item ids; ``ids[code - 1]`` is that of an item code.
        titles: Titles by raw item id, where they are known.
        texts: Words about each item where item vectors are made from them, else empty.
        vectors: Item vectors that cannot be made from what is stored, else None.
    """

    ids: Sequence[str]
    titles: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[str] = ()
    vectors: ItemVectors | None = None

    @property
    def codes(self) -> dict[str, int]:
        """Item codes, from 1 on, by raw item id."""
        return {item_id: item_code for item_code, item_id in enumerate(self.ids, start=1)}


@dataclass(frozen=True)
class Served:
    """A model ready to recommend without a server.

    Attributes:
        origin: Where it comes from.
        items: What it recommends.
        shared: The shared parameters.
        clients: Its clients by name.
        secret: Random bytes of the store that holds it, from which secret item tables start; empty
            where there is none.
        users: New interactions and compressed histories of its users; None of a model that is in no
            store.
    """

    origin: ModelOrigin
    items: ServedItems
    shared: Params
    clients: Mapping[str, ClientModel] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    users: ServedUsers | None = None


def write_served(
    store: StoreFile, served: Served, clients: Iterable[tuple[str, ClientModel]]
) -> None:
    """Writes a model and its ``clients`` in one transaction.

    It replaces the model of the same run and algorithm; ``served.clients`` are not looked at.
    """
    origin, items = served.origin, served.items
    item_facts = {"titles": dict(items.titles), "texts": list(items.texts)}
    shared_tensors = {**served.shared}
    if items.vectors is not None:
        item_facts["vectors"] = [items.vectors.digest, items.vectors.method]
        shared_tensors[VECTORS_NAME] = torch.from_numpy(items.vectors.rows)
    catalogue_json = json.dumps({"item_ids": list(items.ids), **item_facts})
    model_key = (origin.run, origin.algorithm)
    model_facts = (
        origin.round,
        origin.fingerprint,
        json.dumps(dict(origin.settings)),
        catalogue_json,
    )
    with store.transaction() as file:
        file.execute("DELETE FROM served WHERE run = ? AND algorithm = ?", model_key)
        model_number = file.execute(
            "INSERT INTO served VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*model_key, *model_facts, *packed(shared_tensors)),
        ).lastrowid
        client_rows = (
            (model_number, client_name, *_client_columns(client)) for client_name, client in clients
        )
        file.executemany("INSERT INTO served_clients VALUES (?, ?, ?, ?, ?)", client_rows)
        if served.secret:
            file.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (served.secret,))


def read_served(store: StoreFile, run_name: str = "") -> Served:
    """The model that was written last, or that of ``run_name``, with all its clients.

    Raises:
        StateMissingError: There is none.
        NodeStoreError: The file is damaged.
    """
    column_names = (
        "number, run, algorithm, round, fingerprint, settings, catalogue, digest, tensors"
    )
    with store.open() as file:
        file.execute("BEGIN")  # a consistent read, also while another process writes
        model_row = file.execute(
            f"SELECT {column_names} FROM served WHERE ? IN ('', run) ORDER BY number DESC",
            (run_name,),
        ).fetchone()
        if model_row is None:
            raise StateMissingError(
                f"{store.path} serves no model{f' of run {run_name!r}' if run_name else ''}. "
                f"Fix: let a run finish on this node first."
            )
        sql_query = "SELECT client, histories, digest FROM served_clients WHERE number = ?"
        client_rows = file.execute(sql_query, model_row[:1]).fetchall()
        secret_row = file.execute("SELECT value FROM secret").fetchone()
    (
        model_number,
        stored_run,
        algorithm,
        round_,
        fingerprint,
        settings_json,
        catalogue_json,
        digest,
        tensor_blob,
    ) = model_row
    item_facts = json.loads(catalogue_json)
    shared_tensors = store.tensors(tensor_blob, digest)
    item_vectors = shared_tensors.pop(VECTORS_NAME, None)
    return Served(
        origin=ModelOrigin(stored_run, algorithm, round_, fingerprint, json.loads(settings_json)),
        items=ServedItems(
            ids=tuple(item_facts["item_ids"]),
            titles=item_facts["titles"],
            texts=tuple(item_facts.get("texts", ())),
            vectors=None
            if item_vectors is None
            else ItemVectors(item_vectors.numpy(), *item_facts["vectors"]),
        ),
        shared=shared_tensors,
        clients={
            client_name: StoredClient(
                partial(_read_state, store, model_number, client_name, state_digest),
                *read_histories(histories_json),
            )
            for client_name, histories_json, state_digest in client_rows
        },
        secret=secret_row[0] if secret_row else b"",
        users=ServedUsers(store, model_number),
    )


def _read_state(store: StoreFile, model_number: int, client_name: str, state_digest: str) -> Params:
    sql_query = "SELECT tensors FROM served_clients WHERE (number, client, digest) = (?, ?, ?)"
    with store.open() as file:
        state_row = file.execute(sql_query, (model_number, client_name, state_digest)).fetchone()
    if state_row is None:
        raise store.changed()
    return store.tensors(state_row[0], state_digest)


def _client_columns(client: ClientModel) -> tuple[str, str, bytes]:
    """(histories as JSON, SHA-256 of the state, bytes of the state)."""
    return write_histories(client.histories, client.times), *packed(client.state)


def preview(names: Sequence[str] | Mapping[str, object], limit: int = 5) -> str:
    """The first ``limit`` names, and how many there are, for a message."""
    shown_names = ", ".join(list(names)[:limit])
    return shown_names if len(names) <= limit else f"{shown_names}, ... {len(names)} in all"
