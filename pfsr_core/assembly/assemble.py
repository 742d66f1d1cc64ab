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
    chosen = settings.algorithm
    algorithm = ALGORITHMS[chosen.name].build(
        task,
        local_training(settings),
        chosen.own.get(chosen.name),
        Averaging(server_optimizer(chosen.server), chosen.weight_power),
    )
    if chosen.max_row_change:
        return with_row_clipping(algorithm, chosen.max_row_change)
    return algorithm


def assemble(settings: Settings, catalogue: ItemCatalogue | Sequence[str]) -> Assembly:
    """The model over the ``catalogue`` and the algorithm that ``settings`` name.

    Item ids stand for a catalogue without texts. Raises SettingsError when they do not fit each
    other, DataError where item vectors are missing.
    """
    name, catalogue = settings.algorithm.name, as_catalogue(catalogue)
    check_settings(name, settings)
    mode = item_mode(settings.model, settings.run.seed, catalogue)
    spec = ALGORITHMS[name]
    if spec.make_task:
        task = spec.make_task(settings.model, catalogue.item_ids, settings.run.seed)
    else:
        task = task_of_mode(settings, catalogue, mode)
    algorithm = make_algorithm(task, settings)
    nobody = task.partition.init_private(ClientDataset("", (), catalogue.item_ids))
    shapes = shapes_of({**task.partition.init_shared(), **nobody})
    for rows in mode.params.private & set(ROW_NAMES):
        shapes[rows] = (len(catalogue.item_ids) + 1, *shapes[rows][1:])
    model = settings.model
    compressed = "" if model.compressor == IDENTITY else f"{model.compressor} {model.recent}"
    facts = (
        f"state format {STATE_FORMAT}",
        model.encoder,
        model.items,
        name,
        mode.source.digest,
        compressed,
    )
    mark = fingerprint(shapes, *filter(None, facts), *catalogue.item_ids)
    return Assembly(task, algorithm, shapes, mark, mode.source.digest, mode.source.method)
