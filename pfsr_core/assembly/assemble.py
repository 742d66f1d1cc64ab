"""Settings to objects: data, model, algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from pfsr_core.algorithms.clipping import with_row_clipping
from pfsr_core.assembly.compatibility import check_settings
from pfsr_core.assembly.registries import (
    ALGORITHMS,
    IDENTITY,
    TASKS,
)
from pfsr_core.assembly.settings import Settings
from pfsr_core.assembly.task import _catalogue, _make_task
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import Catalogue, item_mode
from pfsr_core.models.parameter_names import ROW_NAMES
from pfsr_core.params import fingerprint, shapes_of

STATE_FORMAT = 2  # another number refuses the states that were made before it


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
    facts = (
        f"state format {STATE_FORMAT}",
        model.encoder,
        model.items,
        name,
        mode.digest,
        compressed,
    )
    mark = fingerprint(shapes, *filter(None, facts), *catalogue.item_ids)
    return Assembly(task, algorithm, shapes, mark, mode.digest, mode.method)
