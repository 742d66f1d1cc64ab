"""Settings as keyword arguments: ``rounds=10``, or nested as ``train={"batch_size": 8}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pfsr_core.settings.fields import SettingsError, Value


def setting_keys(given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Value]:
    """Dotted keys of the settings that a caller gave.

    Args:
        given: Settings by dotted key, by the last part of a key, or nested in tables. An underscore
            stands for a hyphen.
        known: All keys there are.

    Raises:
        SettingsError: A name that is unknown or ambiguous, or a value of an unknown type.
    """
    keys = list(known)
    chosen: dict[str, Value] = {}
    for name, value in _flatten(given):
        chosen[_full_key(name, keys)] = _plain_value(name, value)
    return chosen


def _flatten(given: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in given.items():
        key = prefix + name.replace("_", "-")
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _full_key(name: str, keys: list[str]) -> str:
    """The key that ``name`` is, or that alone ends in it; of several the one with fewest parts."""
    if name in keys:
        return name
    ending = [key for key in keys if key.endswith(f".{name}")]
    fewest = min((key.count(".") for key in ending), default=0)
    shortest = [key for key in ending if key.count(".") == fewest]
    if len(shortest) == 1:
        return shortest[0]
    if shortest:
        raise SettingsError(
            f"setting {name!r} is ambiguous. Fix: write one of "
            f"{', '.join(f'**{{{key!r}: ...}}' for key in shortest)}."
        )
    endings = {key.rpartition(".")[2]: key for key in reversed(keys)}
    near = [endings.get(word, word) for word in get_close_matches(name, [*keys, *endings], 3, 0.6)]
    hint = f"Did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
    raise SettingsError(
        f"unknown setting {name!r}. {hint}Fix: choose a key of pfsr settings, whole or its last "
        f"part."
    )


def _plain_value(name: str, value: Any) -> Value:
    """A number, truth value or text; NumPy's scalars too, and lists of words as one text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        raise SettingsError(
            f"{name} is a {type(value).__name__}. Fix: give one number, truth value or text."
        )
    return value
