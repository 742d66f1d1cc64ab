"""The node of a federation: which clients it hosts, where their data are, where it remembers them.

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

A node is made once for a run config and a node config and kept while its process lives, with its
data and its assembled models (:class:`NodeHost`): an instruction finds them ready.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from client_app.lru import LRUCache
from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import hosted_by
from pfsr_core.items.text_vectors import CO_OCCURRENCE, HASHED, TF_IDF
from pfsr_core.serving.node_store import NodeStore, default_state_directory
from pfsr_core.settings.sections import RunSettings
from pfsr_core.training.allocator import keep_freed_memory

Config = Mapping[str, bool | int | float | str]
NAMES = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEPT_NODES = 64  # in one process, as Flower's simulation has it: they share data and models
KEPT_DATASETS = 2
KEPT_MODELS = 2  # over one data set


class NodeError(ValueError):
    """A node config that cannot be used; says which key and what fits."""


class HostedData:
    """The data that the settings of a run name, and the models assembled over their catalogue.

    Nodes of one process that read the same data share it.

    Attributes:
        dataset: all clients of the data, also those that other nodes host.
    """

    def __init__(self, dataset: FederatedDataset) -> None:
        self.dataset = dataset
        self._models: LRUCache[Settings, Assembly] = LRUCache(KEPT_MODELS)

    @cached_property
    def clients(self) -> dict[str, ClientDataset]:
        """All clients by name, in the order of the names."""
        ordered = sorted(self.dataset.clients, key=lambda data: data.client)
        return {data.client: data for data in ordered}

    def model(self, settings: Settings) -> Assembly:
        """The model and the algorithm of ``settings``, assembled at the first call."""
        return self._models.get(settings, lambda: assemble(settings, self.dataset.catalogue))


@dataclass(frozen=True)
class Node:
    """A node of the federation.

    Attributes:
        partition: orders the nodes of a federation.
        partitions: into how many parts the data are cut; 0 where the node brings data of its own.
        name: what the server calls it; empty for a part of a common data set.
        settings: those of the run, with the node's own data where it has such.
        data: the data set that its clients are in, with the models assembled over it.
        hosted: its clients by name, in the order of the names.
        store: where the private states of its clients and the served model are.
    """

    partition: int
    partitions: int
    name: str
    settings: Settings
    data: HostedData
    hosted: Mapping[str, ClientDataset]
    store: NodeStore

    @property
    def dataset(self) -> FederatedDataset:
        """The data set that its clients are in."""
        return self.data.dataset

    @cached_property
    def clients(self) -> tuple[ClientDataset, ...]:
        """All clients, in the order of their names."""
        return tuple(self.hosted.values())

    def named(self, names: Sequence[str]) -> list[ClientDataset]:
        """The clients of ``names``, in the node's order.

        Raises:
            NodeError: one of them does not live here.
        """
        unknown = [name for name in names if name not in self.hosted]
        if unknown:
            label = self.name or self.partition
            raise NodeError(f"node {label} does not host {', '.join(sorted(unknown))}")
        return [self.hosted[name] for name in sorted(set(names))]

    def model(self, algorithm: str) -> Assembly:
        """The assembled model of this node under ``algorithm``; kept."""
        return self.data.model(with_algorithm(self.settings, algorithm))


class NodeHost:
    """The nodes that this process answers for, each made once and kept.

    A resident worker has one node, a process of Flower's simulation many. Another run config or
    node config is another node. Its data are kept by the settings that choose them, so that runs
    over the same data load them once.
    """

    def __init__(self) -> None:
        self._nodes: LRUCache[str, Node] = LRUCache(KEPT_NODES)
        self._data: LRUCache[Settings, HostedData] = LRUCache(KEPT_DATASETS)

    def node(self, run_config: Config, node_config: Config) -> Node:
        """The node that these configs describe.

        Raises:
            SettingsError: the run config does not fit.
            NodeError: the node config does not fit.
            DataError: its data cannot be read.
        """
        key = json.dumps([dict(run_config), dict(node_config)], sort_keys=True)
        return self._nodes.get(key, lambda: self._make(run_config, node_config))

    def clear(self) -> None:
        """Forgets everything, as the end of the process does."""
        self._nodes.retain(lambda _node: False)
        self._data.retain(lambda _data: False)

    def _make(self, run_config: Config, node_config: Config) -> Node:
        node = make_node(parse_settings(run_config), node_config, self._load)
        kept = self._data.values()
        self._nodes.retain(lambda other: other.data in kept)  # else they would keep old data
        return node

    def _load(self, settings: Settings) -> HostedData:
        return self._data.get(settings, lambda: load_data(settings))


def load_data(settings: Settings) -> HostedData:
    """The data of ``settings``, read now. Raises DataError and SettingsError."""
    return HostedData(load_federation(settings))


def make_node(
    settings: Settings, config: Config, load: Callable[[Settings], HostedData] = load_data
) -> Node:
    """The node that Flower's node config describes.

    Args:
        settings: those of the run.
        config: the node config.
        load: gives the data that some settings name.

    Raises:
        NodeError: the node config does not fit.
        DataError: its data cannot be read.
        SettingsError: the settings do not fit the data.
    """
    torch.set_num_threads(int(os.environ.get("PFSR_THREADS", "1")))
    keep_freed_memory()
    own = bool(config.get("data-path", ""))
    partition, name = int(config.get("partition-id", 0)), _name(config, own)
    if own:
        _check_item_vectors(settings)
        settings = _own_data(settings, config)
    partitions = 0 if own else int(config.get("num-partitions", 1))
    store = NodeStore(_state_directory(config) / f"node-{name or partition}.sqlite")
    secret = store.secret() if settings.model.item_start == "secret" else b""
    data = load(_data_settings(settings))
    if own:
        clients = {f"{name}/{client}": one for client, one in data.clients.items()}
    else:
        here = hosted_by(tuple(data.clients), partition, partitions)
        clients = {client: data.clients[client] for client in here}
    if own or secret:
        clients = {n: replace(one, client=n, secret=secret) for n, one in clients.items()}
    return Node(partition, partitions, name, settings, data, clients, store)


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
