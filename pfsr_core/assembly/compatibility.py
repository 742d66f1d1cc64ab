"""Settings that do not go together, or that nothing would read: refused by name, with the fix."""

from __future__ import annotations

from collections.abc import Sequence

from pfsr_core.algorithms.server_optimizers import UNREAD
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.assembly.settings import DECLARATIONS, Settings, flat_settings
from pfsr_core.settings.fields import SettingsError


def check_settings(name: str, settings: Settings) -> None:
    """Raises SettingsError where settings do not go together, or would be silently ignored.

    Args:
        name: The algorithm. What belongs to other algorithms may be set.
        settings: All settings.
    """
    _check_items(name, settings)
    _check_negatives(settings)
    for key, reason in ALGORITHMS[name].unread.items():
        _require_defaults(settings, [key], reason)
    model, optimizer = settings.model, settings.algorithm.server.optimizer
    _require_defaults(
        settings,
        [f"algorithm.server.{key}" for key in UNREAD[optimizer]],
        f"has no effect with algorithm.server.optimizer = {optimizer!r}",
    )
    if model.items not in ("semantic", "adapted") and not settings.train.semantic_share:
        why = f"has no effect with model.items = {model.items!r} and no train.semantic-share"
        _require_defaults(settings, ["model.item-vectors"], why)
    if model.items != "private" and model.item_start == "secret":
        raise SettingsError(
            f"model.item-start = 'secret' starts private tables, and with model.items = "
            f"{model.items!r} there are none. Fix: model.item-start = 'common'."
        )


def algorithm_names(settings: Settings) -> list[str]:
    """The main algorithm, then those of ``run.compare``, each once. Raises SettingsError."""
    compared = settings.run.compare.replace(",", " ").split()
    for name in compared:
        if name not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise SettingsError(f"run.compare names {name!r}. Choose among: {known}.")
    names = list(dict.fromkeys([settings.algorithm.name, *compared]))
    for name in names:
        check_settings(name, settings)
        ALGORITHMS[name].check_run(flat_settings(settings))
    return names


def _check_negatives(settings: Settings) -> None:
    """Raises SettingsError where sampled negatives would tell a history."""
    if settings.train.negatives and settings.model.items == "dual":
        raise SettingsError(
            "train.negatives with model.items = 'dual': of a shared table only the rows of the "
            "history and of the sample would move, which tells a history. Fix: train.negatives = 0."
        )


def _require_defaults(settings: Settings, keys: Sequence[str], reason: str) -> None:
    """Raises SettingsError unless ``keys`` have their defaults."""
    values = flat_settings(settings)
    for key in keys:
        default = DECLARATIONS[key].default
        if values[key] != default:
            raise SettingsError(f"{key} = {values[key]!r} {reason}. Fix: {key} = {default!r}.")


def _check_items(name: str, settings: Settings) -> None:
    items, demand = settings.model.items, ALGORITHMS[name].items
    if demand is not None and items != demand.mode:
        raise SettingsError(
            f"{name} {demand.reason}, but model.items = {items!r}. Fix: write model.items = "
            f"{demand.mode!r}{demand.consequence}."
        )
    if settings.algorithm.max_row_change and items not in ("shared", "dual"):
        raise SettingsError(
            f"algorithm.max-row-change bounds rows of an item table that is sent, but with "
            f"model.items = {items!r} none is. Fix: algorithm.max-row-change = 0.0."
        )
