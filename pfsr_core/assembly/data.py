"""The data of a run: read, cleaned, split, and partitioned into clients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from pfsr_core.assembly.settings import Settings
from pfsr_core.data.cleaning import Cleaning, clean
from pfsr_core.data.client_dataset import ClientDataset, with_own_catalogue
from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.partition import partition_by_column, partition_by_group, partition_by_user
from pfsr_core.data.splits import Split, leave_one_out
from pfsr_core.items.modes import ItemCatalogue
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.sections import FederationSettings


@dataclass(frozen=True)
class FederatedDataset:
    """The data of a run: who the clients are, in a fixed order, and the log they came from."""

    clients: tuple[ClientDataset, ...]
    split: Split
    interactions: Interactions

    @cached_property
    def catalogue(self) -> ItemCatalogue:
        """All items with the words about them, and the training histories that they occur in."""
        words = {**self.interactions.titles, **self.interactions.texts}
        ids = self.split.item_ids
        histories = tuple(user.train for user in self.split.users)
        return ItemCatalogue(ids, tuple(words.get(raw, "") for raw in ids), histories=histories)


def load_federation(settings: Settings) -> FederatedDataset:
    """Reads the data that ``settings`` name; then as :func:`build_federation`."""
    _check_column(settings.federation)
    return build_federation(settings, load_dataset(settings.data.source, settings.data.path))


def build_federation(settings: Settings, log: Interactions) -> FederatedDataset:
    """Cleans, splits and partitions a log. Raises DataError and SettingsError."""
    _check_column(settings.federation)
    data = settings.data
    interactions = clean(log, cleaning_of(settings)).log
    split = leave_one_out(interactions, data.protocol)
    clients = _partition(settings, split, interactions)
    if data.sampled_99:
        clients = tuple(replace(one, sampled=True) for one in clients)
    clients = tuple(with_catalogue(settings, one) for one in clients)
    return FederatedDataset(clients, split, interactions)


def _check_column(federation: FederationSettings) -> None:
    """Raises SettingsError where a column is needed and none is named."""
    needed = {"partition = 'column'": federation.partition == "column"}
    needed[f"values = {federation.values!r}"] = bool(federation.values.strip(" ,"))
    for setting, asked in needed.items():
        if asked and not federation.column:
            raise SettingsError(
                f"federation.{setting} needs the column that tells clients apart. "
                f"Fix: federation.column = 'market', or as it is called in your data."
            )


def with_catalogue(settings: Settings, data: ClientDataset) -> ClientDataset:
    """The client with the items that ``federation.catalogues`` lets it rank."""
    return with_own_catalogue(data) if settings.federation.catalogues == "own" else data


def cleaning_of(settings: Settings) -> Cleaning:
    """What is done to the log, whatever the partition: a central run sees the same."""
    data, federation = settings.data, settings.federation
    return Cleaning(
        column=federation.column,
        values=tuple(federation.values.replace(",", " ").split()),
        join_variants=data.join_variants,
        user_core=data.user_core,
        item_core=data.item_core,
    )


def _partition(
    settings: Settings, split: Split, interactions: Interactions
) -> tuple[ClientDataset, ...]:
    federation = settings.federation
    if federation.partition == "user":
        if federation.catalogues == "own":
            raise SettingsError(
                "federation.catalogues = 'own' with federation.partition = 'user': beyond the "
                "history a user's own log has the held-out item alone, which any model then ranks "
                "first. Fix: federation.catalogues = 'common'."
            )
        return partition_by_user(split)
    if federation.partition == "column":
        return partition_by_column(split, interactions, federation.column)
    sizes = _sizes(federation.sizes)
    return partition_by_group(split, federation.clients, settings.run.seed, sizes)


def _sizes(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise SettingsError(f"federation.sizes = {text!r}: write whole numbers, e.g. '100 50 50'")
    return tuple(int(word) for word in words)
