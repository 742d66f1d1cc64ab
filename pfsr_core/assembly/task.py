"""The next-item model of the settings as a task: functions, and the partition of its names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from pfsr_core.assembly.registries import COMPRESSORS, ENCODERS
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.items.modes import ItemCatalogue, ItemMode, item_mode, text_vectors
from pfsr_core.items.soft_targets import SoftTargetsOf, semantic_targets
from pfsr_core.models.compressors import USERS, MemoryCompressor
from pfsr_core.models.encoders.base import SequenceEncoder
from pfsr_core.models.next_item import NextItemModel, make_apply, make_serving
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params, Partition, clone
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.sections import ModelSettings
from pfsr_core.training.task import ModelFunctions, ParamPartition, Serving, Task, TaskLoss


def make_task(settings: Settings, catalogue: ItemCatalogue | Sequence[str]) -> Task:
    """The next-item model as functions, and the partition of its names by ``model.items``."""
    catalogue = as_catalogue(catalogue)
    mode = item_mode(settings.model, settings.run.seed, catalogue)
    return task_of_mode(settings, catalogue, mode)


def as_catalogue(catalogue: ItemCatalogue | Sequence[str]) -> ItemCatalogue:
    """Raw item ids stand for a catalogue without texts."""
    return catalogue if isinstance(catalogue, ItemCatalogue) else ItemCatalogue(tuple(catalogue))


def task_of_mode(settings: Settings, catalogue: ItemCatalogue, mode: ItemMode) -> Task:
    """:func:`make_task` with the item mode at hand."""
    model = make_model(settings, len(catalogue.item_ids))
    return Task(
        model=_functions(model, mode),
        partition=_partition(model, mode),
        items=mode.functions,
        loss=TaskLoss(_soft_targets(settings, catalogue, mode.source.texts)),
    )


def _functions(model: NextItemModel, mode: ItemMode) -> ModelFunctions:
    compressor, serving = model.compressor, None
    if isinstance(compressor, MemoryCompressor):
        serving = Serving(compressor.memory_length, *mode.head.memory(*make_serving(model)))
    return ModelFunctions(
        apply=mode.head.apply(make_apply(model)),
        noise_width=model.noise_width,
        reads_times=model.reads_times,
        num_memory_tokens=compressor.num_memory_tokens,
        window_start=compressor.window_start,
        split_points=compressor.split_points,
        serving=serving,
    )


def _partition(model: NextItemModel, mode: ItemMode) -> ParamPartition:
    start = {n: t for n, t in clone(dict(model.named_parameters())).items() if n != ITEMS}
    start = {**mode.params.shared, **start}
    unknown_user = {USERS: start.pop(USERS)} if USERS in start else {}
    private = {*unknown_user, *mode.params.private}
    return ParamPartition(
        names=Partition.of([*start, *private], private=lambda name: name in private),
        init_shared=lambda: clone(start),
        init_private=lambda data: {
            **mode.params.start(data),
            **_rows_of_users(unknown_user, data),
        },
    )


def _rows_of_users(unknown_user: Params, data: ClientDataset) -> Params:
    """The private rows of a client's users, alike at first: an unknown user's, then one of each."""
    count = len(data.users) + 1
    return {name: row.expand(count, *row.shape[1:]).clone() for name, row in unknown_user.items()}


def _soft_targets(
    settings: Settings, catalogue: ItemCatalogue, texts: Tensor | None
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
            text_vectors(settings.model, catalogue) if texts is None else texts,
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
