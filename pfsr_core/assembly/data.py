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
        item_words = {**self.interactions.titles, **self.interactions.texts}
        item_texts = tuple(item_words.get(raw_id, "") for raw_id in self.split.item_ids)
        training_histories = tuple(user.train for user in self.split.users)
        return ItemCatalogue(self.split.item_ids, item_texts, histories=training_histories)


def load_federation(settings: Settings) -> FederatedDataset:
    """Reads the data that ``settings`` name; then as :func:`build_federation`."""
    _check_column(settings.federation)
    return build_federation(settings, load_dataset(settings.data.source, settings.data.path))


def build_federation(settings: Settings, interaction_log: Interactions) -> FederatedDataset:
    """Cleans, splits and partitions a log. Raises DataError and SettingsError."""
    _check_column(settings.federation)
    data_settings = settings.data
    interactions = clean(interaction_log, cleaning_of(settings)).log
    split = leave_one_out(interactions, data_settings.protocol)
    clients = _partition(settings, split, interactions)
    if data_settings.sampled_99:
        clients = tuple(replace(client_data, sampled=True) for client_data in clients)
    clients = tuple(with_catalogue(settings, client_data) for client_data in clients)
    return FederatedDataset(clients, split, interactions)


def _check_column(federation_settings: FederationSettings) -> None:
    """Raises SettingsError where a column is needed and none is named."""
    has_values = bool(federation_settings.values.strip(" ,"))
    column_needed = {
        "partition = 'column'": federation_settings.partition == "column",
        f"values = {federation_settings.values!r}": has_values,
    }
    for setting_text, is_needed in column_needed.items():
        if is_needed and not federation_settings.column:
            raise SettingsError(
                f"federation.{setting_text} needs the column that tells clients apart. "
                f"Fix: federation.column = 'market', or as it is called in your data."
            )


def with_catalogue(settings: Settings, client_data: ClientDataset) -> ClientDataset:
    """The client with the items that ``federation.catalogues`` lets it rank."""
    if settings.federation.catalogues == "own":
        return with_own_catalogue(client_data)
    return client_data


def cleaning_of(settings: Settings) -> Cleaning:
    """What is done to the log, whatever the partition: a central run sees the same."""
    data_settings, federation_settings = settings.data, settings.federation
    return Cleaning(
        column=federation_settings.column,
        values=tuple(federation_settings.values.replace(",", " ").split()),
        join_variants=data_settings.join_variants,
        user_core=data_settings.user_core,
        item_core=data_settings.item_core,
    )


def _partition(
    settings: Settings, split: Split, interactions: Interactions
) -> tuple[ClientDataset, ...]:
    federation_settings = settings.federation
    if federation_settings.partition == "user":
        if federation_settings.catalogues == "own":
            raise SettingsError(
                "federation.catalogues = 'own' with federation.partition = 'user': beyond the "
                "history a user's own log has the held-out item alone, which any model then ranks "
                "first. Fix: federation.catalogues = 'common'."
            )
        return partition_by_user(split)
    if federation_settings.partition == "column":
        return partition_by_column(split, interactions, federation_settings.column)
    group_sizes = _sizes(federation_settings.sizes)
    return partition_by_group(split, federation_settings.clients, settings.run.seed, group_sizes)


def _sizes(sizes_text: str) -> tuple[int, ...]:
    size_words = sizes_text.replace(",", " ").split()
    if not all(size_word.isdecimal() for size_word in size_words):
        raise SettingsError(
            f"federation.sizes = {sizes_text!r}: write whole numbers, e.g. '100 50 50'"
        )
    return tuple(int(size_word) for size_word in size_words)
