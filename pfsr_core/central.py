"""Central training: a federation of one client that holds all users and shares its item table."""

from __future__ import annotations

from collections.abc import Mapping

from pfsr_core.settings import Value

VECTORS = "model.item-vectors"
ONE_CLIENT: Mapping[str, Value] = {
    "federation.partition": "group",
    "federation.clients": 1,
    "federation.sizes": "",
    "federation.participation": 1.0,
    "model.items": "shared",
    "algorithm.name": "fed-avg",
    "algorithm.server-optimizer": "average",
    "algorithm.server-learning-rate": 1.0,
    "algorithm.server-momentum": 0.9,
    "algorithm.server-decay": 1.0,
    "algorithm.server-epsilon": 1e-3,
    "algorithm.finetune": False,
    "run.compare": "",
}
"""What makes a recipe central; nothing overrides it."""

ALL_DATA: Mapping[str, Value] = {
    "model.item-start": "common",
    "model.item-std": 0.02,
    "model.dropout": 0.3,
    "train.optimizer": "adam",
    "train.learning-rate": 0.002,
    "train.item-learning-rate": 0.002,
    "train.batch-size": 64,
}
"""What suits one table learnt from all data, in place of the small steps for many private ones."""


def central_values(
    recipe: Mapping[str, Value], overrides: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """Flat settings of the recipe trained centrally; ``overrides`` win over :data:`ALL_DATA`.

    Vectors of the recipe's items are left out where the loss has no use for them.
    """
    chosen = {**recipe, **ALL_DATA, **(overrides or {}), **ONE_CLIENT}
    if not chosen.get("train.semantic-share") and VECTORS not in (overrides or {}):
        chosen.pop(VECTORS, None)
    return chosen
