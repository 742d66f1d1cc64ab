"""The node of a federation: which clients it hosts, where their data and private states are.

A node is a part of a data set that all nodes have, or the owner of data of its own. Its node config
may say

    partition-id, num-partitions   which part of the run's data set it hosts
    data-path                      its own data in place of the run's; it hosts every client in them
    data-source, clients           how to read those (data.source) and into how many clients to
                                   group their users (federation.clients); else as the run says
    name                           what the server calls it; the owner of data needs one, and its
                                   clients are called name/client
    state-dir                      where it stores states; else $PFSR_HOME/state, or ./.pfsr/state
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
from pfsr_core.assembly.settings import Settings, parse_settings, with_algorithm
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import hosted_by
from pfsr_core.items.text_vectors import CO_OCCURRENCE, HASHED, TF_IDF
from pfsr_core.serving.node_store import NodeStore, default_state_directory
from pfsr_core.settings.sections import RunSettings
from pfsr_core.training.allocator import keep_freed_memory

FlatConfig = Mapping[str, bool | int | float | str]
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
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
        """Holds ``dataset``; models are assembled when they are asked for."""
        self.dataset = dataset
        self._models: LRUCache[Settings, Assembly] = LRUCache(KEPT_MODELS)

    @cached_property
    def clients(self) -> dict[str, ClientDataset]:
        """All clients by name, in the order of the names."""
        ordered_clients = sorted(self.dataset.clients, key=lambda client_data: client_data.client)
        return {client_data.client: client_data for client_data in ordered_clients}

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

    def named(self, client_names: Sequence[str]) -> list[ClientDataset]:
        """The clients of ``client_names``, in the node's order.

        Raises:
            NodeError: one of them is not hosted by this node.
        """
        unknown_names = [
            client_name for client_name in client_names if client_name not in self.hosted
        ]
        if unknown_names:
            node_label = self.name or self.partition
            raise NodeError(f"node {node_label} does not host {', '.join(sorted(unknown_names))}")
        return [self.hosted[client_name] for client_name in sorted(set(client_names))]

    def model(self, algorithm_name: str) -> Assembly:
        """The assembled model of this node under ``algorithm_name``; kept."""
        return self.data.model(with_algorithm(self.settings, algorithm_name))


class NodeHost:
    """The nodes that this process answers for, each made once and kept.

    A resident worker has one node, a process of Flower's simulation many. Another run config or
    node config is another node. Its data are kept by the settings that choose them, so that runs
    over the same data load them once.
    """

    def __init__(self) -> None:
        """Starts without any node."""
        self._nodes: LRUCache[str, Node] = LRUCache(KEPT_NODES)
        self._data: LRUCache[Settings, HostedData] = LRUCache(KEPT_DATASETS)

    def node(self, run_config: FlatConfig, node_config: FlatConfig) -> Node:
        """The node that these configs describe.

        Raises:
            SettingsError: the run config does not fit.
            NodeError: the node config does not fit.
            DataError: its data cannot be read.
        """
        node_key = json.dumps([dict(run_config), dict(node_config)], sort_keys=True)
        return self._nodes.get(node_key, lambda: self._make(run_config, node_config))

    def clear(self) -> None:
        """Forgets everything, as the end of the process does."""
        self._nodes.retain(lambda _node: False)
        self._data.retain(lambda _data: False)

    def _make(self, run_config: FlatConfig, node_config: FlatConfig) -> Node:
        node = make_node(
            parse_settings(run_config),
            node_config,
            lambda settings: self._data.get(settings, lambda: load_data(settings)),
        )
        kept_data = self._data.values()
        # Nodes over dropped data are dropped too: they would keep the data in memory.
        self._nodes.retain(lambda kept_node: kept_node.data in kept_data)
        return node


def load_data(settings: Settings) -> HostedData:
    """The data of ``settings``, read now. Raises DataError and SettingsError."""
    return HostedData(load_federation(settings))


def make_node(
    settings: Settings,
    node_config: FlatConfig,
    data_loader: Callable[[Settings], HostedData] = load_data,
) -> Node:
    """The node that Flower's node config describes.

    Args:
        settings: Those of the run.
        node_config: Flower's node config; its keys are those of the module's head.
        data_loader: Loads the data that the settings name.

    Raises:
        NodeError: The node config does not fit.
        DataError: Its data cannot be read.
        SettingsError: The settings do not fit the data.
    """
    torch.set_num_threads(int(os.environ.get("PFSR_THREADS", "1")))
    keep_freed_memory()
    has_own_data = bool(node_config.get("data-path", ""))
    partition_id = int(node_config.get("partition-id", 0))
    node_name = _node_name(node_config, has_own_data)
    if has_own_data:
        _check_item_vectors(settings)
        settings = _own_data(settings, node_config)
    num_partitions = 0 if has_own_data else int(node_config.get("num-partitions", 1))
    state_directory = str(node_config.get("state-dir", ""))
    state_path = (
        Path(state_directory).expanduser() if state_directory else default_state_directory()
    )
    store = NodeStore(state_path / f"node-{node_name or partition_id}.sqlite")
    node_secret = store.secret() if settings.model.item_start == "secret" else b""
    hosted_data = data_loader(_data_settings(settings))
    if has_own_data:
        hosted_clients = {
            f"{node_name}/{client_name}": client_data
            for client_name, client_data in hosted_data.clients.items()
        }
    else:
        hosted_names = hosted_by(tuple(hosted_data.clients), partition_id, num_partitions)
        hosted_clients = {
            client_name: hosted_data.clients[client_name] for client_name in hosted_names
        }
    if has_own_data or node_secret:
        hosted_clients = {
            client_name: replace(client_data, client=client_name, secret=node_secret)
            for client_name, client_data in hosted_clients.items()
        }
    return Node(
        partition_id, num_partitions, node_name, settings, hosted_data, hosted_clients, store
    )


def _node_name(node_config: FlatConfig, has_own_data: bool) -> str:
    """The node's name; for a node with data of its own else the number of its partition."""
    node_name = str(node_config.get("name", ""))
    if has_own_data and not node_name:
        node_name = str(node_config.get("partition-id", ""))
    if has_own_data and not node_name:
        raise NodeError('a node with a data-path needs a name, e.g. name="berlin" (--node-config)')
    if node_name and not NODE_NAME.fullmatch(node_name):
        raise NodeError(f"name {node_name!r}: use at most 64 letters, digits, '.', '_' and '-'")
    return node_name


def _check_item_vectors(settings: Settings) -> None:
    model_settings = settings.model
    if model_settings.item_vectors == CO_OCCURRENCE:
        raise NodeError(
            f"model.item-vectors = {CO_OCCURRENCE!r} pools what all clients count, and a node with "
            f"a data-path keeps its data to itself. Fix: model.item-vectors = {HASHED!r} where the "
            f"data have texts, or a file of vectors that every node has."
        )
    if model_settings.items in ("semantic", "adapted") and model_settings.item_vectors == TF_IDF:
        raise NodeError(
            f"model.item-vectors = {TF_IDF!r} is fitted to a catalogue, and nodes with a data-path "
            f"have one each, so that their vectors would not mean the same. Fix: "
            f"model.item-vectors = {HASHED!r}, or a file of vectors that every node has."
        )


def _own_data(settings: Settings, node_config: FlatConfig) -> Settings:
    data_settings, federation_settings = settings.data, settings.federation
    data_source = str(node_config.get("data-source", data_settings.source))
    num_clients = int(node_config.get("clients", federation_settings.clients))
    return replace(
        settings,
        data=replace(data_settings, path=str(node_config["data-path"]), source=data_source),
        # The node hosts all clients of its own data.
        federation=replace(federation_settings, clients=num_clients, values=""),
    )


def _data_settings(settings: Settings) -> Settings:
    """What the data depend on, and nothing else: the key under which they are kept."""
    run_settings = RunSettings(seed=settings.run.seed)
    return Settings(data=settings.data, federation=settings.federation, run=run_settings)
