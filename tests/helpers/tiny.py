"""A federation small enough for a test: synthetic data, a narrow model, one thread."""

from __future__ import annotations

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.federated.model import Assembly
from pfsr_core.settings.fields import Value

TINY: dict[str, Value] = {
    "data.source": "synthetic",
    "data.path": "users=24,items=40,seed=3,mean_length=12",
    "federation.clients": 6,
    "federation.rounds": 3,
    "model.embedding-dim": 8,
    "model.state-dim": 4,
    "model.num-heads": 2,
    "model.num-layers": 1,
    "model.max-length": 10,
    "model.id-dim": 64,
    "train.batch-size": 4,
    "algorithm.pfsr.fisher-samples": 16,
    "algorithm.pfsr.two-phases": True,
    "model.dropout": 0.3,
    "model.item-start": "common",
    "train.item-learning-rate": 0.002,
    "train.residual-learning-rate": 0.002,
    "run.compare": "",
}

ITEMS_OF = {name: spec.items.mode for name, spec in ALGORITHMS.items() if spec.items is not None}
"""The item mode of every algorithm that demands one."""

OWN_MODEL = tuple(name for name, spec in ALGORITHMS.items() if spec.make_task is not None)
"""Algorithms that train another model than the next-item model."""

NEEDS: dict[str, dict[str, Value]] = {
    "pfedrec": {
        "model.items": "shared",
        "model.item-std": 1.0,
        "train.learning-rate": 0.1,
        "train.item-learning-rate": 1.0,
    },
    "fecosr": {
        "model.items": "adapted",
        "algorithm.finetune": True,
        "algorithm.fecosr.finetune-epochs": 2,
    },
}
"""What an algorithm cannot do without, or cannot be expected to learn without."""


def tiny_settings(**changes: Value) -> Settings:
    """TINY with changes; ``algorithm__name="pfsr"`` stands for ``algorithm.name``."""
    named = {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}
    return parse_settings({**TINY, **named, **NEEDS.get(str(named.get("algorithm.name")), {})})


def tiny_world(**changes: Value) -> tuple[Settings, FederatedDataset, Assembly]:
    settings = tiny_settings(**changes)
    federation = load_federation(settings)
    return settings, federation, assemble(settings, federation.catalogue)
