"""Which clients a node hosts, where their data are and where it remembers them.

A node is a part of a data set that all nodes have, or the owner of data of its own. Its node config
may say

    partition-id, num-partitions   which part of the run's data set it hosts
    data-path                      its own data in place of the run's; it hosts every client in them
    data-source, clients           how to read those (data.source) and into how many clients to
                                   group their users (federation.clients); else as the run says
    name                           what the server calls it; the owner of data needs one, and its
                                   clients are called name/client
    state-dir                      where it remembers; else $PFSR_HOME/state, or ./.pfsr/state
    worker                         false: no resident process between messages
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import hosted_by
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.items.text_vectors import CO_OCCURRENCE, HASHED, TF_IDF
from pfsr_core.serving.node_store import NodeStore, default_state_directory
from pfsr_core.settings.sections import RunSettings
from pfsr_core.training.allocator import keep_freed_memory

Config = Mapping[str, bool | int | float | str]
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class NodeError(ValueError):
    """A node config that cannot be used; says which key and what fits."""


@dataclass(frozen=True)
class Node:
    """A node while it answers one message. ``partition`` orders the nodes of a federation."""

    partition: int
    partitions: int  # 0: unknown, the node brings data of its own
    name: str  # empty for a part of a common data set
    settings: Settings
    federation: FederatedDataset
    hosted: Mapping[str, ClientDataset]  # by name, in the order of the names
    store: NodeStore

    @cached_property
    def clients(self) -> tuple[ClientDataset, ...]:
        """All clients, in the order of their names."""
        return tuple(self.hosted.values())

    def named(self, names: Sequence[str]) -> list[ClientDataset]:
        """The clients of ``names``, in the node's order; raises NodeError for a stranger."""
        strangers = [name for name in names if name not in self.hosted]
        if strangers:
            label = self.name or self.partition
            raise NodeError(f"node {label} does not host {', '.join(sorted(strangers))}")
        return [self.hosted[name] for name in sorted(set(names))]


def make_node(settings: Settings, config: Config) -> Node:
    """The node that Flower's node config describes. Raises NodeError, DataError, SettingsError."""
    torch.set_num_threads(int(os.environ.get("PFSR_THREADS", "1")))
    keep_freed_memory()
    own = bool(config.get("data-path", ""))
    partition, name = int(config.get("partition-id", 0)), _name(config, own)
    if own:
        _check_item_vectors(settings)
        settings = _own_data(settings, config)
    data_settings = _data_settings(settings)
    partitions = 0 if own else int(config.get("num-partitions", 1))
    store = NodeStore(_state_directory(config) / f"node-{name or partition}.sqlite")
    secret = store.secret() if settings.model.item_start == "secret" else b""
    hosted = _hosted(data_settings, partition, partitions, name if own else "", secret)
    federation = _federation(data_settings)
    return Node(partition, partitions, name, settings, federation, hosted, store)


def _name(config: Config, own: bool) -> str:
    """The node's name; the number of its partition will do where that is given."""
    name = str(config.get("name", ""))
    if own and not name:
        name = str(config.get("partition-id", ""))
    if own and not name:
        raise NodeError('a node with a data-path needs a name, e.g. name="berlin" (--node-config)')
    if name and not NAMES.fullmatch(name):
        raise NodeError(f"name {name!r}: use at most 64 letters, digits, '.', '_' and '-'")
    return name


def _check_item_vectors(settings: Settings) -> None:
    model = settings.model
    if model.item_vectors == CO_OCCURRENCE:
        raise NodeError(
            f"model.item-vectors = {CO_OCCURRENCE!r} pools what all clients count, and a node with "
            f"a data-path keeps its data to itself. Fix: model.item-vectors = {HASHED!r} where the "
            f"data have texts, or a file of vectors that every node has."
        )
    if model.items in ("semantic", "adapted") and model.item_vectors == TF_IDF:
        raise NodeError(
            f"model.item-vectors = {TF_IDF!r} is fitted to a catalogue, and nodes with a data-path "
            f"have one each, so that their vectors would not mean the same. Fix: "
            f"model.item-vectors = {HASHED!r}, or a file of vectors that every node has."
        )


def _own_data(settings: Settings, config: Config) -> Settings:
    data, federation = settings.data, settings.federation
    source = str(config.get("data-source", data.source))
    clients = int(config.get("clients", federation.clients))
    return replace(
        settings,
        data=replace(data, path=str(config["data-path"]), source=source),
        federation=replace(federation, clients=clients, values=""),  # it hosts all it has
    )


@lru_cache(maxsize=2)
def _hosted(
    settings: Settings, partition: int, partitions: int, owner: str, secret: bytes
) -> dict[str, ClientDataset]:
    """The clients that live here, by name; the names of an owner's clients begin with its own.

    Kept, as the data are, while the process lives: a node may host very many.
    """
    everybody = _federation(settings).clients
    clients = {data.client: data for data in sorted(everybody, key=lambda data: data.client)}
    if owner:
        clients = {f"{owner}/{name}": data for name, data in clients.items()}
    else:
        here = hosted_by(tuple(clients), partition, partitions)
        clients = {name: clients[name] for name in here}
    if not owner and not secret:
        return clients
    return {name: replace(d, client=name, secret=secret) for name, d in clients.items()}


def with_algorithm(settings: Settings, name: str) -> Settings:
    """The same settings for another algorithm."""
    return replace(settings, algorithm=replace(settings.algorithm, name=name))


def _data_settings(settings: Settings) -> Settings:
    """What the data depend on, and nothing else: the key under which they are kept."""
    run = RunSettings(seed=settings.run.seed)
    return Settings(data=settings.data, federation=settings.federation, run=run)


def _state_directory(config: Config) -> Path:
    given = str(config.get("state-dir", ""))
    return Path(given).expanduser() if given else default_state_directory()


@lru_cache(maxsize=2)
def _federation(settings: Settings) -> FederatedDataset:
    """Kept while the process lives: in a simulation it answers many messages."""
    return load_federation(settings)


def assembly_of(node: Node, algorithm: str) -> Assembly:
    """Task and algorithm, over this node's catalogue."""
    return _assemble(with_algorithm(node.settings, algorithm), node.federation.catalogue)


@lru_cache(maxsize=2)
def _assemble(settings: Settings, catalogue: ItemCatalogue) -> Assembly:
    return assemble(settings, catalogue)
