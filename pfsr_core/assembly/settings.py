"""All settings of a run: typed, frozen, parsed once from the flat table that Flower hands over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pfsr_core.settings.fields import SettingsError, Value, _check, setting
from pfsr_core.settings.sections import (
    DataSettings,
    FederationSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class AlgorithmSettings:
    name: str = setting(
        "pfsr",
        "federated algorithm",
        choices=("pfsr", "fed-avg", "fed-prox", "local-only", "pfedrec", "fecosr"),
    )
    weight_power: float = setting(
        1.0,
        "a client weighs its interactions to this power; with pfedrec all clients weigh the same",
        low=0.0,
        high=1.0,
    )
    mask_mode: str = setting(
        "quantile", "Fisher mask of PFSR", choices=("quantile", "minmax", "none")
    )
    rho: float = setting(0.25, "share of each tensor kept local, mode quantile", low=0.0, high=1.0)
    tau: float = setting(0.4, "bar for scaled Fisher, mode minmax", low=0.0, high=1.0)
    fisher_samples: int = setting(64, "(prefix, target) samples for the Fisher", low=1)
    serve: str = setting("merged", "what PFSR recommends with", choices=("merged", "personal"))
    anchor: str = setting(
        "local", "what the kept coordinates are held to", choices=("local", "global")
    )
    keep_strength: float = setting(0.1, "lambda1: anchor of the kept coordinates", low=0.0)
    magnitude_strength: float = setting(0.05, "lambda2: magnitude of the shared part", low=0.0)
    magnitude_side: str = setting(
        "above",
        "which norms lambda2 pulls to C_t: those above it, or both",
        choices=("above", "both"),
    )
    two_phases: bool = setting(False, "train kept coordinates first, then the others")
    aggregation: str = setting("zero", "masked coordinates", choices=("zero", "count"))
    proximal_strength: float = setting(0.01, "mu of fed-prox", low=0.0)
    server_optimizer: str = setting(
        "average", "what the server does with the mean", choices=("average", "momentum", "adam")
    )
    server_learning_rate: float = setting(1.0, "server step of momentum and adam", low=0.0)
    server_momentum: float = setting(0.9, "momentum of momentum and adam", low=0.0, high=0.9999)
    server_decay: float = setting(
        1.0, "the server's step shrinks by it every round", low=0.1, high=1.0
    )
    server_epsilon: float = setting(
        1e-3, "tau of the server's adam: changes far below it are not scaled up", low=0.0
    )
    item_step: str = setting(
        "row",
        "a step of pfedrec on an item's row: the mean over its own samples, or over the batch",
        choices=("row", "batch"),
    )
    negatives_per_positive: int = setting(4, "items of label 0 for each of label 1, pfedrec", low=0)
    max_row_change: float = setting(
        0.0, "largest change (L2) of an item's row in a client's update; 0: no bound", low=0.0
    )
    finetune: bool = setting(False, "train once more on each client after the last round")
    finetune_mode: str = setting(
        "all+adapter",
        "what fecosr finetunes: the market adapter, all but it, or both",
        choices=("adapter", "all", "all+adapter"),
    )
    finetune_epochs: int = setting(10, "epochs of it, of which the best one is kept", low=1)
    finetune_step: float = setting(1.0, "its step sizes over those of the rounds", low=1e-6)
    safety_rule: bool = setting(
        True, "fecosr trains every client alone beside, and ships the better model"
    )


@dataclass(frozen=True)
class Settings:
    """Everything a run is made from."""

    data: DataSettings = field(default_factory=DataSettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    run: RunSettings = field(default_factory=RunSettings)


SECTIONS: dict[str, type[Any]] = {
    "data": DataSettings,
    "federation": FederationSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "algorithm": AlgorithmSettings,
    "run": RunSettings,
}


def parse_settings(flat: Mapping[str, Value]) -> Settings:
    """Settings from dotted keys; what is not given has its default. Raises SettingsError."""
    sections: dict[str, dict[str, Value]] = {name: {} for name in SECTIONS}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        known = _fields(section)
        if name not in known:
            raise SettingsError(f"unknown setting {key!r}. {_nearest(key)}")
        sections[section][name.replace("-", "_")] = _check(key, value, known[name])
    return Settings(**{name: SECTIONS[name](**values) for name, values in sections.items()})


def flat_settings(settings: Settings) -> dict[str, Value]:
    """Undoes :func:`parse_settings`: every key with its value."""
    return {
        f"{section}.{name}": getattr(getattr(settings, section), item.name)
        for section in SECTIONS
        for name, item in _fields(section).items()
    }


def _fields(section: str) -> dict[str, Any]:
    if section not in SECTIONS:
        return {}
    return {item.name.replace("_", "-"): item for item in fields(SECTIONS[section])}


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    known = [f"{section}.{name}" for section in SECTIONS for name in _fields(section)]
    near = get_close_matches(key, known, 3, 0.4)
    return f"Did you mean {' or '.join(near)}?" if near else f"Sections: {', '.join(SECTIONS)}"
