"""The next-item model of the settings as a task: functions, and the partition of its names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from pfsr_core.assembly.registries import COMPRESSORS, ENCODERS
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.items.modes import Catalogue, ItemMode, item_mode, text_vectors
from pfsr_core.items.soft_targets import SoftTargetsOf, semantic_targets
from pfsr_core.models.compressors import USERS, MemoryCompressor
from pfsr_core.models.encoders.base import SequenceEncoder
from pfsr_core.models.next_item import NextItemModel, make_apply, make_serving
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, Partition, clone
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.sections import ModelSettings
from pfsr_core.training.task import Serving, Task


def make_task(settings: Settings, catalogue: Catalogue | Sequence[str]) -> Task:
    """The next-item model as functions, and the partition of its names by ``model.items``."""
    catalogue = _catalogue(catalogue)
    return _make_task(settings, catalogue, item_mode(settings, catalogue))


def _catalogue(catalogue: Catalogue | Sequence[str]) -> Catalogue:
    return catalogue if isinstance(catalogue, Catalogue) else Catalogue(tuple(catalogue))


def _make_task(settings: Settings, catalogue: Catalogue, mode: ItemMode) -> Task:
    model = make_model(settings, len(catalogue.item_ids))
    compressor = model.compressor
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
    if not isinstance(model.compressor, MemoryCompressor):
        return None
    parts = mode.memory_head(*make_serving(model))
    return Serving(model.compressor.begin, *parts)


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


def _encoder(model: ModelSettings) -> SequenceEncoder:
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
