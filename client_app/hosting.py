"""Which clients a node hosts, where their data are and where it remembers them.

A node is a partition of the federation's clients, or the owner of a data set of its own. Its node
config may say: ``partition-id``, ``num-partitions``, ``data-path`` (its own data, in place of the
run's; it then hosts every client in them), ``state-dir`` (else $PFSR_HOME/state, or ./.pfsr/state).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from pfsr_core.assembly import Assembly, Federation, assemble, load_federation
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.node_store import NodeStore, default_state_directory
from pfsr_core.settings import RunSettings, Settings
from pfsr_core.simulation import hosted_by

Config = Mapping[str, bool | int | float | str]


class NodeError(ValueError):
    """A node config that cannot be used; says which key and what fits."""


@dataclass(frozen=True)
class Node:
    """A node while it answers one message. ``partition`` orders the nodes of a federation."""

    partition: int
    partitions: int  # 0: unknown, the node brings data of its own
    settings: Settings
    federation: Federation
    clients: tuple[ClientDataset, ...]
    store: NodeStore

    def named(self, names: Sequence[str]) -> list[ClientDataset]:
        """The clients of ``names``, in the node's order; raises NodeError for a stranger."""
        strangers = set(names) - {data.client for data in self.clients}
        if strangers:
            raise NodeError(f"node {self.partition} does not host {', '.join(sorted(strangers))}")
        return [data for data in self.clients if data.client in names]


def make_node(settings: Settings, config: Config) -> Node:
    """The node that Flower's node config describes. Raises NodeError, DataError, SettingsError."""
    torch.set_num_threads(int(os.environ.get("PFSR_THREADS", "1")))
    partition = int(config.get("partition-id", 0))
    own_path = str(config.get("data-path", ""))
    partitions = 0 if own_path else int(config.get("num-partitions", 1))
    if own_path:
        settings = replace(settings, data=replace(settings.data, path=own_path))
    federation = _federation(_data_settings(settings))
    clients = tuple(sorted(federation.clients, key=lambda data: data.client))
    if partitions:
        here = hosted_by([data.client for data in clients], partition, partitions)
        clients = tuple(data for data in clients if data.client in set(here))
    store = NodeStore(_state_directory(config) / f"node-{partition}.sqlite")
    if settings.model.item_start == "secret":
        secret = store.secret()
        clients = tuple(replace(data, secret=secret) for data in clients)
    return Node(partition, partitions, settings, federation, clients, store)


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
def _federation(settings: Settings) -> Federation:
    """Kept while the process lives: in a simulation it answers many messages."""
    return load_federation(settings)


def assembly_of(node: Node, algorithm: str) -> Assembly:
    """Task and algorithm, over this node's catalogue."""
    return _assemble(with_algorithm(node.settings, algorithm), node.federation.split.item_ids)


@lru_cache(maxsize=2)
def _assemble(settings: Settings, item_ids: tuple[str, ...]) -> Assembly:
    return assemble(settings, item_ids)
