"""Recipes: TOML files with a table for each section, read into the dotted keys of the settings.

``[algorithm.pfsr]`` with ``mask-mode = "quantile"`` is the key ``algorithm.pfsr.mask-mode``. The
same file serves ``flwr run --run-config`` and the command line.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pfsr_core.settings.fields import SettingsError, Value

Flat = dict[str, Value]


def load_recipe(path: Path) -> Flat:
    """Dotted keys of a recipe. Raises SettingsError when it is missing, broken or nested wrongly.

    Values are only read here; :func:`pfsr_core.assembly.settings.parse_settings` checks them.
    """
    return flatten_tables(_read(path), str(path))


def with_overrides(flat: Mapping[str, Value], overrides: Iterable[str]) -> Flat:
    """``flat`` with ``key=value`` texts on top; values are TOML, bare words are text."""
    return {**flat, **dict(parse_override(text) for text in overrides)}


def parse_override(text: str) -> tuple[str, Value]:
    """``"train.batch-size=32"`` -> ``("train.batch-size", 32)``. Raises SettingsError."""
    key, equals, written = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise SettingsError(f"cannot read {text!r}: write key=value, e.g. federation.rounds=5")
    try:
        value = tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        value = written
    if not isinstance(value, bool | int | float | str):
        raise SettingsError(f"{key} = {written}: write one number, truth value or text")
    return key, value


def toml_value(value: Value) -> str:
    """How a value is written in a recipe or on a command line: ``True`` -> ``"true"``."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)


def flatten_tables(tables: Mapping[str, Any], place: str) -> Flat:
    """Nested tables as dotted keys; ``place`` is named in errors."""
    flat: Flat = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            inner = flatten_tables(value, place)
            flat |= {f"{key}.{name}": inner_value for name, inner_value in inner.items()}
        elif isinstance(value, bool | int | float | str):
            flat[key] = value
        else:
            raise SettingsError(
                f"{place}: {key} is a {type(value).__name__}. Fix: write one number, true or "
                f"false, or text, in the table of its section, e.g. [train]."
            )
    return flat


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        reason, fix = "no such file", "give the path of a recipe, e.g. recipes/pfsr.toml"
    except OSError as error:
        reason, fix = error.strerror or "cannot be read", "give a readable TOML file"
    except UnicodeDecodeError:
        reason, fix = "not UTF-8 text", "save the recipe as UTF-8"
    except tomllib.TOMLDecodeError as error:
        reason, fix = f"not valid TOML ({error})", 'write key = value, texts in "quotes"'
    raise SettingsError(f"{path}: {reason}. Fix: {fix}.")
