"""Settings as keyword arguments: ``rounds=10``, or nested as ``train={"batch_size": 8}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pfsr_core.settings.fields import SettingsError, Value


def setting_keys(given_settings: Mapping[str, Any], known_keys: Iterable[str]) -> dict[str, Value]:
    """Dotted keys of the settings that a caller gave.

    Args:
        given_settings: Settings by dotted key, by the last part of a key, or nested in tables. An
            underscore stands for a hyphen.
        known_keys: All keys there are.

    Raises:
        SettingsError: A name that is unknown or ambiguous, or a value of an unknown type.
    """
    key_list = list(known_keys)
    chosen_values: dict[str, Value] = {}
    for given_name, given_value in _flatten(given_settings):
        chosen_values[_full_key(given_name, key_list)] = _plain_value(given_name, given_value)
    return chosen_values


def _flatten(given_settings: Mapping[str, Any], key_prefix: str = "") -> Iterable[tuple[str, Any]]:
    for given_name, given_value in given_settings.items():
        if not isinstance(given_name, str):
            table_text = f"in {key_prefix.rstrip('.')}, " if key_prefix else ""
            raise SettingsError(
                f"{table_text}the setting {given_name!r} is a {type(given_name).__name__}. Fix: "
                f"name settings by text, as train={{'batch_size': 8}}."
            )
        setting_key = key_prefix + given_name.replace("_", "-")
        if isinstance(given_value, Mapping):
            yield from _flatten(given_value, f"{setting_key}.")
        else:
            yield setting_key, given_value


def _full_key(given_name: str, known_keys: list[str]) -> str:
    """The key that equals the name, or ends in it: of several the one with the fewest parts."""
    if given_name in known_keys:
        return given_name
    matching_keys = [key for key in known_keys if key.endswith(f".{given_name}")]
    fewest_dots = min((key.count(".") for key in matching_keys), default=0)
    shortest_keys = [key for key in matching_keys if key.count(".") == fewest_dots]
    if len(shortest_keys) == 1:
        return shortest_keys[0]
    if shortest_keys:
        raise SettingsError(
            f"setting {given_name!r} is ambiguous. Fix: write one of "
            f"{', '.join(f'**{{{key!r}: ...}}' for key in shortest_keys)}."
        )
    key_of_ending = {key.rpartition(".")[2]: key for key in reversed(known_keys)}
    close_names = get_close_matches(given_name, [*known_keys, *key_of_ending], 3, 0.6)
    close_keys = [key_of_ending.get(name, name) for name in close_names]
    hint = f"Did you mean {' or '.join(dict.fromkeys(close_keys))}? " if close_keys else ""
    raise SettingsError(
        f"unknown setting {given_name!r}. {hint}Fix: choose a key of pfsr settings, whole or its "
        f"last part."
    )


def _plain_value(given_name: str, value: Any) -> Value:
    """A number, truth value or text; NumPy's scalars too, and lists of words as one text."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        raise SettingsError(
            f"{given_name} is a {type(value).__name__}. Fix: give one number, truth value or text."
        )
    return value
