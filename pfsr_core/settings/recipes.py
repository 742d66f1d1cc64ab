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

FlatSettings = dict[str, Value]


def load_recipe(recipe_path: Path) -> FlatSettings:
    """Dotted keys of a recipe. Raises SettingsError when it is missing, broken or nested wrongly.

    Values are only read here; :func:`pfsr_core.assembly.settings.parse_settings` checks them.
    """
    return flatten_tables(_read(recipe_path), str(recipe_path))


def with_overrides(setting_values: Mapping[str, Value], overrides: Iterable[str]) -> FlatSettings:
    """``setting_values`` with ``key=value`` texts on top; values are TOML, bare words are text."""
    return {**setting_values, **dict(parse_override(override_text) for override_text in overrides)}


def parse_override(override_text: str) -> tuple[str, Value]:
    """``"train.batch-size=32"`` -> ``("train.batch-size", 32)``. Raises SettingsError."""
    setting_key, equals, value_text = (part.strip() for part in override_text.partition("="))
    if not setting_key or not equals:
        raise SettingsError(
            f"cannot read {override_text!r}: write key=value, e.g. federation.rounds=5"
        )
    try:
        value = tomllib.loads(f"value = {value_text}")["value"]
    except tomllib.TOMLDecodeError:
        value = value_text
    if not isinstance(value, bool | int | float | str):
        raise SettingsError(f"{setting_key} = {value_text}: write one number, truth value or text")
    return setting_key, value


def toml_value(value: Value) -> str:
    """How a value is written in a recipe or on a command line: ``True`` -> ``"true"``."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else repr(value)


def flatten_tables(tables: Mapping[str, Any], source_name: str) -> FlatSettings:
    """Nested tables as dotted keys; ``source_name`` is named in errors."""
    setting_values: FlatSettings = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            inner_values = flatten_tables(value, source_name)
            setting_values |= {
                f"{key}.{inner_key}": inner_value for inner_key, inner_value in inner_values.items()
            }
        elif isinstance(value, bool | int | float | str):
            setting_values[key] = value
        else:
            raise SettingsError(
                f"{source_name}: {key} is a {type(value).__name__}. Fix: write one number, true or "
                f"false, or text, in the table of its section, e.g. [train]."
            )
    return setting_values


def _read(recipe_path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(recipe_path.read_text("utf-8"))
    except FileNotFoundError:
        reason, fix = "no such file", "give the path of a recipe, e.g. recipes/pfsr.toml"
    except OSError as error:
        reason, fix = error.strerror or "cannot be read", "give a readable TOML file"
    except UnicodeDecodeError:
        reason, fix = "not UTF-8 text", "save the recipe as UTF-8"
    except tomllib.TOMLDecodeError as error:
        reason, fix = f"not valid TOML ({error})", 'write key = value, texts in "quotes"'
    raise SettingsError(f"{recipe_path}: {reason}. Fix: {fix}.")
