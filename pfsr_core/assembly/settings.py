"""All settings of a run: typed, frozen, parsed once from the flat table that Flower hands over.

Every value is converted and checked here, and an error names the key and what it may be. The
sections are declared where they are read: those of algorithms and of the server optimizer in
:mod:`pfsr_core.algorithms`, the others in :mod:`pfsr_core.settings.sections`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from pfsr_core.algorithms.server_optimizers import Averaging, ServerOptimizerSettings
from pfsr_core.assembly.moved_keys import MOVED_KEYS
from pfsr_core.assembly.registries import ALGORITHMS, COMPRESSORS, ENCODERS
from pfsr_core.items.modes import ITEM_MODES
from pfsr_core.settings.fields import (
    SettingsError,
    Value,
    declarations,
    flat_section,
    make_section,
    section,
    sections,
    setting,
)
from pfsr_core.settings.sections import (
    DataSettings,
    FederationSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
)


@dataclass(frozen=True)
class AlgorithmSettings:
    """The federated algorithm: its name, what several have in common, and each one's own section.

    ``own`` holds the sections of the algorithms that have one, by the algorithm's name.
    """

    name: str = setting("pfsr", "federated algorithm", choices=ALGORITHMS)
    weight_power: float = setting(
        Averaging.weight_power,
        "exponent of the number of training interactions in a client's aggregation weight: 1, "
        "weights in proportion to the data; 0, equal weights, which pfedrec always takes",
        low=0.0,
        high=1.0,
    )
    max_row_change: float = setting(
        0.0, "largest L2 norm of a client's change of any item's row; 0: no limit", low=0.0
    )
    finetune: bool = setting(False, "finetune the model on each client after the last round")
    server: ServerOptimizerSettings = section(ServerOptimizerSettings)
    own: Mapping[str, Any] = sections(
        {name: spec.settings for name, spec in ALGORITHMS.items() if spec.settings is not None}
    )


@dataclass(frozen=True)
class Settings:
    """Everything a run is made from."""

    data: DataSettings = section(DataSettings)
    federation: FederationSettings = section(FederationSettings)
    model: ModelSettings = section(
        ModelSettings, choices={"encoder": ENCODERS, "items": ITEM_MODES, "compressor": COMPRESSORS}
    )
    train: TrainSettings = section(TrainSettings)
    algorithm: AlgorithmSettings = section(AlgorithmSettings)
    run: RunSettings = section(RunSettings)


DECLARATIONS = declarations(Settings)
"""Every setting by its dotted key."""


def parse_settings(setting_values: Mapping[str, Value]) -> Settings:
    """Settings from dotted keys; what is not given has its default.

    Raises:
        SettingsError: A key is unknown or has moved, or a value is of the wrong type or out of
            range.
    """
    checked_values: dict[str, Value] = {}
    for setting_key, value in setting_values.items():
        if setting_key in MOVED_KEYS:
            raise SettingsError(
                f"{setting_key} is called {MOVED_KEYS[setting_key]} now. "
                f"Fix: write {MOVED_KEYS[setting_key]}."
            )
        if setting_key not in DECLARATIONS:
            raise SettingsError(f"unknown setting {setting_key!r}. {_suggestion(setting_key)}")
        checked_values[setting_key] = DECLARATIONS[setting_key].checked(setting_key, value)
    return make_section(Settings, checked_values)


def flat_settings(settings: Settings) -> dict[str, Value]:
    """Undoes :func:`parse_settings`: every key with its value."""
    return flat_section(settings)


def with_algorithm(settings: Settings, algorithm_name: str) -> Settings:
    """The same settings for another algorithm."""
    return replace(settings, algorithm=replace(settings.algorithm, name=algorithm_name))


def _suggestion(unknown_key: str) -> str:
    similar_keys = get_close_matches(unknown_key, DECLARATIONS, 3, 0.4)
    if similar_keys:
        return f"Did you mean {' or '.join(similar_keys)}?"
    section_names = dict.fromkeys(key.split(".")[0] for key in DECLARATIONS)
    return f"Sections: {', '.join(section_names)}"
