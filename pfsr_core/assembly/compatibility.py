"""Settings that do not go together, or that nothing would read: refused by name, with the fix."""

from __future__ import annotations

from collections.abc import Sequence

from pfsr_core.assembly.registries import ALGORITHMS, ITEMS_OF, TASKS
from pfsr_core.assembly.settings import Settings, flat_settings
from pfsr_core.settings.fields import SettingsError

OF_HISTORIES = (
    "train.semantic-share",
    "train.negatives",
    "model.compressor",
    "model.personal-memory",
)
"""Settings that a model of TASKS, which reads no history, makes nothing of."""

SERVER_STEPS: dict[str, frozenset[str]] = {
    "average": frozenset({"learning-rate", "momentum", "decay", "epsilon"}),
    "momentum": frozenset({"epsilon"}),
    "adam": frozenset(),
}
"""What each ``algorithm.server-optimizer`` does not read of the others."""


def check_settings(name: str, settings: Settings) -> None:
    """Raises SettingsError where settings do not go together, or would be silently ignored.

    ``name``: the algorithm. What belongs to other algorithms by its name may be set.
    """
    _check_items(name, settings)
    _check_negatives(settings)
    if name in TASKS:
        _usual(settings, OF_HISTORIES, f"with {name}, which predicts no next item")
    model, step = settings.model, settings.algorithm.server_optimizer
    _usual(
        settings,
        [f"algorithm.server-{key}" for key in sorted(SERVER_STEPS[step])],
        f"has no effect with algorithm.server-optimizer = {step!r}",
    )
    if model.items not in ("semantic", "adapted") and not settings.train.semantic_share:
        why = f"has no effect with model.items = {model.items!r} and no train.semantic-share"
        _usual(settings, ["model.item-vectors"], why)
    if model.items != "private" and model.item_start == "secret":
        raise SettingsError(
            f"model.item-start = 'secret' starts private tables, and with model.items = "
            f"{model.items!r} there are none. Fix: model.item-start = 'common'."
        )


def _check_negatives(settings: Settings) -> None:
    """Raises SettingsError where sampled negatives would tell a history."""
    if settings.train.negatives and settings.model.items == "dual":
        raise SettingsError(
            "train.negatives with model.items = 'dual': of a shared table only the rows of the "
            "history and of the sample would move, which tells a history. Fix: train.negatives = 0."
        )


def _usual(settings: Settings, keys: Sequence[str], why: str) -> None:
    """Raises SettingsError unless ``keys`` have their defaults."""
    chosen, usual = flat_settings(settings), flat_settings(Settings())
    for key in keys:
        if chosen[key] != usual[key]:
            raise SettingsError(f"{key} = {chosen[key]!r} {why}. Fix: {key} = {usual[key]!r}.")


def _check_items(name: str, settings: Settings) -> None:
    items = settings.model.items
    wanted, why, note = ITEMS_OF.get(name, (items, "", ""))
    if items != wanted:
        raise SettingsError(
            f"{name} {why}, but model.items = {items!r}. Fix: write model.items = {wanted!r}{note}."
        )
    if settings.algorithm.max_row_change and items not in ("shared", "dual"):
        raise SettingsError(
            f"algorithm.max-row-change bounds rows of an item table that is sent, but with "
            f"model.items = {items!r} none is. Fix: algorithm.max-row-change = 0.0."
        )


def algorithm_names(settings: Settings) -> list[str]:
    """The main algorithm, then those of ``run.compare``; none twice. Raises SettingsError."""
    compared = settings.run.compare.replace(",", " ").split()
    for name in compared:
        if name not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise SettingsError(f"run.compare names {name!r}. Choose among: {known}.")
    names = list(dict.fromkeys([settings.algorithm.name, *compared]))
    for name in names:
        check_settings(name, settings)
        if name == "fecosr":
            _check_stages(settings)
    return names


def _check_stages(settings: Settings) -> None:
    """Raises SettingsError for what has no place in the two stages of fecosr."""
    algorithm = settings.algorithm
    if algorithm.safety_rule and not algorithm.finetune:
        raise SettingsError(
            "fecosr's safety rule compares finetuned models, but algorithm.finetune = false: "
            "clients would train alone for nothing, and ship unseen. Fix: algorithm.finetune = "
            "true, or algorithm.safety-rule = false."
        )
    if settings.model.personal_memory and algorithm.finetune_mode == "all":
        raise SettingsError(
            "model.personal-memory with fecosr and algorithm.finetune-mode = 'all': the private "
            "rows of users are trained with the adapter, which stays out then. Fix: "
            "algorithm.finetune-mode = 'all+adapter'."
        )
    if settings.run.warm_start and algorithm.safety_rule:
        raise SettingsError(
            "run.warm-start with fecosr's safety rule: all that clients keep from a run is the "
            "model alone, which would go on from there while the shared one begins anew. Fix: "
            "run.warm-start = ''."
        )
