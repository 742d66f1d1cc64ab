"""Settings that do not go together, or that nothing would read: refused by name, with the fix."""

from __future__ import annotations

from collections.abc import Sequence

from pfsr_core.algorithms.server_optimizers import UNREAD
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.assembly.settings import DECLARATIONS, Settings, flat_settings
from pfsr_core.settings.fields import SettingsError


def check_settings(algorithm_name: str, settings: Settings) -> None:
    """Raises SettingsError where settings do not go together, or would be silently ignored.

    Args:
        algorithm_name: The algorithm. What belongs to other algorithms may be set.
        settings: All settings.
    """
    _check_items(algorithm_name, settings)
    _check_negatives(settings)
    for setting_key, reason in ALGORITHMS[algorithm_name].unread.items():
        _require_defaults(settings, [setting_key], reason)
    items_mode, server_optimizer = settings.model.items, settings.algorithm.server.optimizer
    _require_defaults(
        settings,
        [f"algorithm.server.{setting_key}" for setting_key in UNREAD[server_optimizer]],
        f"has no effect with algorithm.server.optimizer = {server_optimizer!r}",
    )
    if items_mode not in ("semantic", "adapted") and not settings.train.semantic_share:
        no_effect = f"has no effect with model.items = {items_mode!r} and no train.semantic-share"
        _require_defaults(settings, ["model.item-vectors"], no_effect)
    if items_mode != "private" and settings.model.item_start == "secret":
        raise SettingsError(
            f"model.item-start = 'secret' starts private tables, and with model.items = "
            f"{items_mode!r} there are none. Fix: model.item-start = 'common'."
        )


def algorithm_names(settings: Settings) -> list[str]:
    """The main algorithm, then those of ``run.compare``, each once. Raises SettingsError."""
    compared_names = settings.run.compare.replace(",", " ").split()
    for algorithm_name in compared_names:
        if algorithm_name not in ALGORITHMS:
            known_names = ", ".join(ALGORITHMS)
            raise SettingsError(
                f"run.compare names {algorithm_name!r}. Choose among: {known_names}."
            )
    unique_names = list(dict.fromkeys([settings.algorithm.name, *compared_names]))
    for algorithm_name in unique_names:
        check_settings(algorithm_name, settings)
        ALGORITHMS[algorithm_name].check_run(flat_settings(settings))
    return unique_names


def _check_negatives(settings: Settings) -> None:
    """Raises SettingsError where sampled negatives would reveal a history."""
    if settings.train.negatives and settings.model.items == "dual":
        raise SettingsError(
            "train.negatives with model.items = 'dual': of a shared table only the rows of the "
            "history and of the sample would move, which tells a history. Fix: train.negatives = 0."
        )


def _require_defaults(settings: Settings, setting_keys: Sequence[str], reason: str) -> None:
    """Raises SettingsError unless the settings have their defaults."""
    setting_values = flat_settings(settings)
    for setting_key in setting_keys:
        default_value = DECLARATIONS[setting_key].default
        if setting_values[setting_key] != default_value:
            raise SettingsError(
                f"{setting_key} = {setting_values[setting_key]!r} {reason}. "
                f"Fix: {setting_key} = {default_value!r}."
            )


def _check_items(algorithm_name: str, settings: Settings) -> None:
    items_mode, items_demand = settings.model.items, ALGORITHMS[algorithm_name].items
    if items_demand is not None and items_mode != items_demand.mode:
        raise SettingsError(
            f"{algorithm_name} {items_demand.reason}, but model.items = {items_mode!r}. "
            f"Fix: write model.items = {items_demand.mode!r}{items_demand.consequence}."
        )
    if settings.algorithm.max_row_change and items_mode not in ("shared", "dual"):
        raise SettingsError(
            f"algorithm.max-row-change bounds rows of an item table that is sent, but with "
            f"model.items = {items_mode!r} none is. Fix: algorithm.max-row-change = 0.0."
        )
