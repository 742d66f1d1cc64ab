"""Settings to objects: data, model, algorithm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import cast

import torch
from torch import Tensor, nn

from pfsr_core.algorithms.row_clipping import with_row_clipping
from pfsr_core.data import load_dataset
from pfsr_core.data.cleaning import Cleaning, clean
from pfsr_core.data.client_dataset import ClientDataset, with_own_catalogue
from pfsr_core.data.federation import (
    partition_by_column,
    partition_by_group,
    partition_by_user,
)
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import Split, leave_one_out
from pfsr_core.federated import FederatedAlgorithm
from pfsr_core.item_modes import Catalogue, ItemMode, item_mode, text_vectors
from pfsr_core.local_training import Serving, Task, stream_seed
from pfsr_core.models.compressors import USERS, Compressor, Memory, WholeHistory
from pfsr_core.models.next_item import (
    ITEMS,
    ROW_NAMES,
    NextItemModel,
    make_apply,
    make_serving,
)
from pfsr_core.params import Params, Partition, Shapes, clone, fingerprint, shapes_of
from pfsr_core.registries import ALGORITHMS, COMPRESSORS, ENCODERS, IDENTITY, TASKS
from pfsr_core.setting_checks import check_settings
from pfsr_core.settings import FederationSettings, ModelSettings, Settings, SettingsError
from pfsr_core.soft_targets import SoftTargetsOf, semantic_targets

STATE_LAYOUT = "rows of a client's own items"  # another text refuses states made before it


@dataclass(frozen=True)
class Federation:
    """The data of a run: who the clients are, in a fixed order, and the log they came from."""

    clients: tuple[ClientDataset, ...]
    split: Split
    interactions: Interactions

    @cached_property
    def catalogue(self) -> Catalogue:
        """All items with the words about them, and the training histories that they occur in."""
        words = {**self.interactions.titles, **self.interactions.texts}
        ids = self.split.item_ids
        histories = tuple(user.train for user in self.split.users)
        return Catalogue(ids, tuple(words.get(raw, "") for raw in ids), histories=histories)


@dataclass(frozen=True)
class Assembly:
    """A task and an algorithm over it.

    ``shapes``: all parameters, the private ones with a row for each item of the catalogue.
    ``fingerprint`` names the model. ``vectors_digest`` and ``vectors_method`` of public item
    vectors: see :class:`pfsr_core.data.item_vectors.ItemVectors`; "" without them.
    """

    task: Task
    algorithm: FederatedAlgorithm
    shapes: Shapes
    fingerprint: str
    vectors_digest: str = ""
    vectors_method: str = ""

    def fingerprint_of(self, data: ClientDataset) -> str:
        """Names the model, and whose rows a client's state holds: of which items and users."""
        private, facts = self.task.partition.private, []
        if data.own_catalogue is not None:
            facts.append(hashlib.sha256(data.own_catalogue.tobytes()).hexdigest())
        if private & set(ROW_NAMES):
            facts.append(hashlib.sha256(data.touched.tobytes()).hexdigest())
        if USERS in private:
            facts.extend(user.user for user in data.users)
        return fingerprint({}, self.fingerprint, *facts) if facts else self.fingerprint


def load_federation(settings: Settings) -> Federation:
    """Reads, cleans, splits and partitions the data. Raises DataError and SettingsError."""
    _check_column(settings.federation)
    data = settings.data
    interactions = clean(load_dataset(data.source, data.path), cleaning_of(settings)).log
    split = leave_one_out(interactions, data.protocol)
    clients = _partition(settings, split, interactions)
    if data.sampled_99:
        clients = tuple(replace(one, sampled=True) for one in clients)
    clients = tuple(with_catalogue(settings, one) for one in clients)
    return Federation(clients, split, interactions)


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


def assemble(settings: Settings, catalogue: Catalogue | Sequence[str]) -> Assembly:
    """The model over the ``catalogue`` and the algorithm that ``settings`` name.

    Item ids stand for a catalogue without texts. Raises SettingsError when they do not fit each
    other, DataError where item vectors are missing.
    """
    name, catalogue = settings.algorithm.name, _catalogue(catalogue)
    check_settings(name, settings)
    mode = item_mode(settings, catalogue)
    if name in TASKS:
        task = TASKS[name](settings, catalogue.item_ids)
    else:
        task = _make_task(settings, catalogue, mode)
    algorithm = ALGORITHMS[name](task, settings)
    if settings.algorithm.max_row_change:
        algorithm = with_row_clipping(algorithm, settings.algorithm.max_row_change)
    nobody = task.init_private(ClientDataset("", (), catalogue.item_ids))
    shapes = shapes_of({**task.init_shared(), **nobody})
    for rows in mode.private & set(ROW_NAMES):
        shapes[rows] = (len(catalogue.item_ids) + 1, *shapes[rows][1:])
    model = settings.model
    compressed = "" if model.compressor == IDENTITY else f"{model.compressor} {model.recent}"
    facts = (STATE_LAYOUT, model.encoder, model.items, name, mode.digest, compressed)
    mark = fingerprint(shapes, *filter(None, facts), *catalogue.item_ids)
    return Assembly(task, algorithm, shapes, mark, mode.digest, mode.method)


def make_task(settings: Settings, catalogue: Catalogue | Sequence[str]) -> Task:
    """The next-item model as functions, and the partition of its names by ``model.items``."""
    catalogue = _catalogue(catalogue)
    return _make_task(settings, catalogue, item_mode(settings, catalogue))


def _catalogue(catalogue: Catalogue | Sequence[str]) -> Catalogue:
    return catalogue if isinstance(catalogue, Catalogue) else Catalogue(tuple(catalogue))


def _make_task(settings: Settings, catalogue: Catalogue, mode: ItemMode) -> Task:
    model = make_model(settings, len(catalogue.item_ids))
    compressor = cast(Compressor, model.compressor)
    start = {n: t for n, t in clone(dict(model.named_parameters())).items() if n != ITEMS}
    start = {**mode.shared, **start}
    stranger = {USERS: start.pop(USERS)} if USERS in start else {}
    kept = {*stranger, *mode.private}
    return Task(
        apply=mode.head(make_apply(model)),
        noise_width=model.noise_width,
        reads_times=model.reads_times,
        partition=Partition.of([*start, *kept], private=lambda name: name in kept),
        init_shared=lambda: clone(start),
        init_private=lambda data: {**mode.start(data), **_rows_of_users(stranger, data)},
        candidates=lambda d: torch.from_numpy(d.touched if mode.own_rows else d.catalogue),
        unseen_rows=mode.unseen_rows,
        effective=mode.effective,
        averaged=mode.averaged,
        soft_targets=_soft_targets(settings, catalogue, mode.texts),
        places=compressor.places,
        first_read=compressor.first_read,
        cuts=compressor.cuts,
        serving=_serving(model, mode),
    )


def _rows_of_users(stranger: Params, data: ClientDataset) -> Params:
    """The private rows of a client's users, alike at first: a stranger's, then one for each."""
    count = len(data.users) + 1
    return {name: row.expand(count, *row.shape[1:]).clone() for name, row in stranger.items()}


def _serving(model: NextItemModel, mode: ItemMode) -> Serving | None:
    if isinstance(model.compressor, WholeHistory):
        return None
    parts = mode.memory_head(*make_serving(model))
    return Serving(cast(Memory, model.compressor).begin, *parts)


def _soft_targets(
    settings: Settings, catalogue: Catalogue, texts: Tensor | None
) -> SoftTargetsOf | None:
    """Those that train.semantic-share asks for, by the ``texts`` of the item mode where it has.

    The vectors are made when somebody trains: a server may know items without knowing their texts.
    """
    train = settings.train
    if not train.semantic_share or not catalogue.known:
        return None
    if train.negatives:
        raise SettingsError(
            "train.semantic-share with train.negatives: items that are not in the sample would "
            "share the next item's probability. Fix: train.negatives = 0."
        )

    @cache
    def targets() -> SoftTargetsOf:
        return semantic_targets(
            text_vectors(settings, catalogue) if texts is None else texts,
            catalogue.item_ids,
            train.semantic_share,
            train.semantic_neighbours,
            train.semantic_temperature,
        )

    return lambda candidates: targets()(candidates)


def _encoder(model: ModelSettings) -> nn.Module:
    """The encoder of the settings; what its constructor objects to is a SettingsError."""
    try:
        return ENCODERS[model.encoder](model)
    except ValueError as error:
        raise SettingsError(
            f"model.encoder = {model.encoder!r}: {error}. Fix: change that setting of the model."
        ) from None


def make_model(settings: Settings, num_items: int) -> NextItemModel:
    """The module, started from the run's seed; the global generator is left as it was."""
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.run.seed, "model"))
        encoder = _encoder(model)
        compressor = COMPRESSORS[model.compressor](model, encoder)
        return NextItemModel(num_items, model.embedding_dim, encoder, model.dropout, compressor)
