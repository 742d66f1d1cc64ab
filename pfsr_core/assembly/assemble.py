"""Settings to objects: data, model, algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from pfsr_core.algorithms.clipping import with_row_clipping
from pfsr_core.algorithms.server_optimizers import Averaging, server_optimizer
from pfsr_core.assembly.compatibility import check_settings
from pfsr_core.assembly.registries import ALGORITHMS, IDENTITY
from pfsr_core.assembly.settings import Settings
from pfsr_core.assembly.task import as_catalogue, task_of_mode
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ItemCatalogue, item_mode
from pfsr_core.models.parameter_names import ROW_NAMES
from pfsr_core.params import fingerprint, shapes_of
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task

STATE_FORMAT = 2  # another number refuses the states that were made before it


def local_training(settings: Settings) -> LocalTraining:
    """How a client trains."""
    return LocalTraining(settings.train, settings.model.max_length, settings.run.seed)


def make_algorithm(task: Task, settings: Settings) -> FederatedAlgorithm:
    """The algorithm that ``settings`` name, over a task."""
    algorithm_settings = settings.algorithm
    algorithm = ALGORITHMS[algorithm_settings.name].build(
        task,
        local_training(settings),
        algorithm_settings.own.get(algorithm_settings.name),
        Averaging(server_optimizer(algorithm_settings.server), algorithm_settings.weight_power),
    )
    if algorithm_settings.max_row_change:
        return with_row_clipping(algorithm, algorithm_settings.max_row_change)
    return algorithm


def assemble(settings: Settings, catalogue: ItemCatalogue | Sequence[str]) -> Assembly:
    """The model over the ``catalogue`` and the algorithm that ``settings`` name.

    Item ids stand for a catalogue without texts. Raises SettingsError when they do not fit each
    other, DataError where item vectors are missing.
    """
    algorithm_name, catalogue = settings.algorithm.name, as_catalogue(catalogue)
    check_settings(algorithm_name, settings)
    mode = item_mode(settings.model, settings.run.seed, catalogue)
    algorithm_spec = ALGORITHMS[algorithm_name]
    if algorithm_spec.make_task:
        task = algorithm_spec.make_task(settings.model, catalogue.item_ids, settings.run.seed)
    else:
        task = task_of_mode(settings, catalogue, mode)
    algorithm = make_algorithm(task, settings)
    empty_client_params = task.partition.init_private(ClientDataset("", (), catalogue.item_ids))
    param_shapes = shapes_of({**task.partition.init_shared(), **empty_client_params})
    for row_name in mode.params.private & set(ROW_NAMES):
        param_shapes[row_name] = (len(catalogue.item_ids) + 1, *param_shapes[row_name][1:])
    model_settings = settings.model
    compressor_text = ""
    if model_settings.compressor != IDENTITY:
        compressor_text = f"{model_settings.compressor} {model_settings.recent}"
    model_facts = (
        f"state format {STATE_FORMAT}",
        model_settings.encoder,
        model_settings.items,
        algorithm_name,
        mode.source.digest,
        compressor_text,
    )
    model_fingerprint = fingerprint(param_shapes, *filter(None, model_facts), *catalogue.item_ids)
    return Assembly(
        task, algorithm, param_shapes, model_fingerprint, mode.source.digest, mode.source.method
    )
