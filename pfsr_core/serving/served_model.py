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

VECTORS = "item vectors"  # name of the item vectors among the shared tensors of a stored model


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
        return {raw: code for code, raw in enumerate(self.ids, start=1)}


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
    words = {"titles": dict(items.titles), "texts": list(items.texts)}
    tensors = {**served.shared}
    if items.vectors is not None:
        words["vectors"] = [items.vectors.digest, items.vectors.method]
        tensors[VECTORS] = torch.from_numpy(items.vectors.rows)
    catalogue = json.dumps({"item_ids": list(items.ids), **words})
    names = (origin.run, origin.algorithm)
    facts = (origin.round, origin.fingerprint, json.dumps(dict(origin.settings)), catalogue)
    with store.transaction() as file:
        file.execute("DELETE FROM served WHERE run = ? AND algorithm = ?", names)
        number = file.execute(
            "INSERT INTO served VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*names, *facts, *packed(tensors)),
        ).lastrowid
        rows = ((number, name, *_client_columns(client)) for name, client in clients)
        file.executemany("INSERT INTO served_clients VALUES (?, ?, ?, ?, ?)", rows)
        if served.secret:
            file.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (served.secret,))


def read_served(store: StoreFile, run: str = "") -> Served:
    """The model that was written last, or that of ``run``, with all its clients.

    Raises:
        StateMissingError: There is none.
        NodeStoreError: The file is damaged.
    """
    columns = "number, run, algorithm, round, fingerprint, settings, catalogue, digest, tensors"
    with store.open() as file:
        file.execute("BEGIN")  # one model and its own clients, whoever writes meanwhile
        row = file.execute(
            f"SELECT {columns} FROM served WHERE ? IN ('', run) ORDER BY number DESC", (run,)
        ).fetchone()
        if row is None:
            raise StateMissingError(
                f"{store.path} serves no model{f' of run {run!r}' if run else ''}. "
                f"Fix: let a run finish on this node first."
            )
        query = "SELECT client, histories, digest FROM served_clients WHERE number = ?"
        clients = file.execute(query, row[:1]).fetchall()
        secret = file.execute("SELECT value FROM secret").fetchone()
    number, of_run, algorithm, round_, fingerprint, settings, catalogue, digest, blob = row
    words = json.loads(catalogue)
    shared = store.tensors(blob, digest)
    vectors = shared.pop(VECTORS, None)
    return Served(
        origin=ModelOrigin(of_run, algorithm, round_, fingerprint, json.loads(settings)),
        items=ServedItems(
            ids=tuple(words["item_ids"]),
            titles=words["titles"],
            texts=tuple(words.get("texts", ())),
            vectors=None if vectors is None else ItemVectors(vectors.numpy(), *words["vectors"]),
        ),
        shared=shared,
        clients={
            name: StoredClient(
                partial(_read_state, store, number, name, state_digest), *read_histories(text)
            )
            for name, text, state_digest in clients
        },
        secret=secret[0] if secret else b"",
        users=ServedUsers(store, number),
    )


def _read_state(store: StoreFile, number: int, client: str, digest: str) -> Params:
    query = "SELECT tensors FROM served_clients WHERE (number, client, digest) = (?, ?, ?)"
    with store.open() as file:
        row = file.execute(query, (number, client, digest)).fetchone()
    if row is None:
        raise store.changed()
    return store.tensors(row[0], digest)


def _client_columns(client: ClientModel) -> tuple[str, str, bytes]:
    """(histories as JSON, SHA-256 of the state, bytes of the state)."""
    return write_histories(client.histories, client.times), *packed(client.state)


def preview(names: Sequence[str] | Mapping[str, object], limit: int = 5) -> str:
    """The first ``limit`` names, and how many there are, for a message."""
    shown = ", ".join(list(names)[:limit])
    return shown if len(names) <= limit else f"{shown}, ... {len(names)} in all"
