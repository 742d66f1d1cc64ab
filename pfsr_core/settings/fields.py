"""How one setting is declared and checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from typing import Any

Value = bool | int | float | str


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; says which and what fits."""


def setting(default: Value, help: str, **limits: Any) -> Any:
    """A field with its help text and limits: ``low``, ``high`` (inclusive), ``choices``."""
    return field(default=default, metadata={"help": help, **limits})


def _check(key: str, value: Value, item: Any) -> Value:
    value = _convert(key, value, type(item.default))
    limits = item.metadata
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{key} = {value!r}: write a finite number")
    if "choices" in limits and value not in limits["choices"]:
        raise SettingsError(f"{key} = {value!r}. Choose one of: {', '.join(limits['choices'])}")
    if "low" in limits and not value >= limits["low"]:
        raise SettingsError(f"{key} = {value!r} is below {limits['low']:g}")
    if "high" in limits and not value <= limits["high"]:
        raise SettingsError(f"{key} = {value!r} is above {limits['high']:g}")
    return value


def _convert(key: str, value: Value, kind: type[Value]) -> Value:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words: dict[type, Callable[[], str]] = {
            bool: lambda: "true or false",
            int: lambda: "a whole number",
            float: lambda: "a number",
            str: lambda: "text in quotes",
        }
        raise SettingsError(
            f"{key} = {value!r} is {type(value).__name__}; it must be {words[kind]()}"
        )
    return value
