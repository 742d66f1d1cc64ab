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
    next_item_model = make_model(settings, len(catalogue.item_ids))
    return Task(
        model=_functions(next_item_model, mode),
        partition=_partition(next_item_model, mode),
        items=mode.functions,
        loss=TaskLoss(_soft_targets(settings, catalogue, mode.source.texts)),
    )


def _functions(next_item_model: NextItemModel, mode: ItemMode) -> ModelFunctions:
    compressor, serving_functions = next_item_model.compressor, None
    if isinstance(compressor, MemoryCompressor):
        serving_functions = Serving(
            compressor.memory_length, *mode.head.memory(*make_serving(next_item_model))
        )
    return ModelFunctions(
        apply=mode.head.apply(make_apply(next_item_model)),
        noise_width=next_item_model.noise_width,
        reads_times=next_item_model.reads_times,
        num_memory_tokens=compressor.num_memory_tokens,
        window_start=compressor.window_start,
        split_points=compressor.split_points,
        serving=serving_functions,
    )


def _partition(next_item_model: NextItemModel, mode: ItemMode) -> ParamPartition:
    initial_params = clone(dict(next_item_model.named_parameters()))
    initial_params.pop(ITEMS, None)
    shared_start = {**mode.params.shared, **initial_params}
    unknown_user = {USERS: shared_start.pop(USERS)} if USERS in shared_start else {}
    private_names = {*unknown_user, *mode.params.private}
    return ParamPartition(
        names=Partition.of(
            [*shared_start, *private_names], private=lambda param_name: param_name in private_names
        ),
        init_shared=lambda: clone(shared_start),
        init_private=lambda client_data: {
            **mode.params.start(client_data),
            **_rows_of_users(unknown_user, client_data),
        },
    )


def _rows_of_users(unknown_user: Params, client_data: ClientDataset) -> Params:
    """The private rows of a client's users, alike at first: an unknown user's, then one of each."""
    num_rows = len(client_data.users) + 1
    return {
        param_name: unknown_row.expand(num_rows, *unknown_row.shape[1:]).clone()
        for param_name, unknown_row in unknown_user.items()
    }


def _soft_targets(
    settings: Settings, catalogue: ItemCatalogue, mode_vectors: Tensor | None
) -> SoftTargetsOf | None:
    """The soft targets of train.semantic-share, None where it is 0.

    They follow the text vectors of the item mode, ``mode_vectors`` (V, D), where it has some; other
    vectors are made at the first training step: a server may know items without their texts.
    """
    train_settings = settings.train
    if not train_settings.semantic_share or not catalogue.known:
        return None
    if train_settings.negatives:
        raise SettingsError(
            "train.semantic-share with train.negatives: items that are not in the sample would "
            "share the next item's probability. Fix: train.negatives = 0."
        )

    @cache
    def targets() -> SoftTargetsOf:
        return semantic_targets(
            text_vectors(settings.model, catalogue) if mode_vectors is None else mode_vectors,
            catalogue.item_ids,
            train_settings.semantic_share,
            train_settings.semantic_neighbours,
            train_settings.semantic_temperature,
        )

    return lambda candidate_items: targets()(candidate_items)


def _encoder(model_settings: ModelSettings) -> SequenceEncoder:
    """The encoder of the settings; what its constructor objects to is a SettingsError."""
    try:
        return ENCODERS[model_settings.encoder](model_settings)
    except ValueError as error:
        raise SettingsError(
            f"model.encoder = {model_settings.encoder!r}: {error}. "
            f"Fix: change that setting of the model."
        ) from None


def make_model(settings: Settings, num_items: int) -> NextItemModel:
    """The module, started from the run's seed; the global generator is left as it was."""
    model_settings = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.run.seed, "model"))
        encoder = _encoder(model_settings)
        compressor = COMPRESSORS[model_settings.compressor](model_settings, encoder)
        return NextItemModel(
            num_items, model_settings.embedding_dim, encoder, model_settings.dropout, compressor
        )
