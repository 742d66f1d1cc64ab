"""How settings are declared, checked, read from dotted keys and written back.

A section is a frozen dataclass. Its fields are made by :func:`setting`, by :func:`section` for a
table in a table, or by :func:`sections` for tables that a registry names. A key is the path of
field names in kebab-case: ``settings.algorithm.server.learning_rate`` is
``algorithm.server.learning-rate``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

Value = bool | int | float | str
Section = TypeVar("Section")

TYPE_TEXTS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
}


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; says which and what fits."""


@dataclass(frozen=True)
class Declaration:
    """One setting: its default, what it means, and its limits, both inclusive.

    ``choices``: the texts it may be, none of them where it is free.
    """

    default: Value
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def checked(self, key: str, value: Value) -> Value:
        """``value``, whole numbers made floats where those are wanted. Raises SettingsError."""
        value = _converted(key, value, type(self.default))
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{key} = {value!r}: write a finite number")
        if self.choices and value not in self.choices:
            raise SettingsError(f"{key} = {value!r}. Choose one of: {', '.join(self.choices)}")
        if isinstance(value, int | float):
            if self.low is not None and not value >= self.low:
                raise SettingsError(f"{key} = {value!r} is below {self.low:g}")
            if self.high is not None and not value <= self.high:
                raise SettingsError(f"{key} = {value!r} is above {self.high:g}")
        return value


def setting(
    default: Value,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] = (),
) -> Any:
    """A field that is one setting.

    Args:
        default: Its value where none is given; the type of it is the setting's.
        help: What it means, readable without the settings around it.
        low: Smallest value allowed.
        high: Largest value allowed.
        choices: The texts allowed; of a registry, its names.
    """
    declared = Declaration(default, help, low, high, tuple(choices))
    return field(default=default, metadata={"setting": declared})


def section(section_type: type[Any], choices: Mapping[str, Collection[str]] | None = None) -> Any:
    """A field that is a section.

    Args:
        section_type: The dataclass of the section.
        choices: By key, the texts allowed of those of its settings that name an entry of a
            registry which the section itself does not know.
    """
    return field(
        default_factory=section_type, metadata={"section": section_type, "choices": choices or {}}
    )


def sections(section_types: Mapping[str, type[Any]]) -> Any:
    """A field with a section for every name: a mapping. Its own name is no part of their keys."""
    return field(
        default_factory=lambda: {name: made() for name, made in section_types.items()},
        metadata={"sections": dict(section_types)},
        hash=False,
    )


def declarations(section_type: type[Any]) -> dict[str, Declaration]:
    """Every setting of a section and of the sections in it, by dotted key, in their order."""
    declared_settings: dict[str, Declaration] = {}
    for section_field in fields(section_type):
        field_key, field_metadata = _key(section_field.name), section_field.metadata
        if "setting" in field_metadata:
            declared_settings[field_key] = field_metadata["setting"]
        elif "section" in field_metadata:
            inner_settings = declarations(field_metadata["section"])
            for key, names in field_metadata["choices"].items():
                inner_settings[key] = replace(inner_settings[key], choices=tuple(names))
            declared_settings |= _under(field_key, inner_settings)
        else:
            for inner_name, inner_type in field_metadata["sections"].items():
                declared_settings |= _under(inner_name, declarations(inner_type))
    return declared_settings


def section_kinds(section_type: type[Any], section_path: str = "") -> dict[str, type[Any]]:
    """The types of a section and of those in it, by dotted path; its own is ``section_path``."""
    type_of_path = {section_path: section_type}
    path_prefix = f"{section_path}." if section_path else ""
    for section_field in fields(section_type):
        field_metadata = section_field.metadata
        inner_types = field_metadata.get("sections", {})
        if "section" in field_metadata:
            inner_types = {_key(section_field.name): field_metadata["section"]}
        for inner_name, inner_type in inner_types.items():
            type_of_path |= section_kinds(inner_type, path_prefix + inner_name)
    return type_of_path


def make_section(section_type: type[Section], setting_values: Mapping[str, Value]) -> Section:
    """A section from dotted keys, whose values are taken as they are; others have defaults."""
    field_values: dict[str, Any] = {}
    for section_field in fields(section_type):  # type: ignore[arg-type]
        field_key, field_metadata = _key(section_field.name), section_field.metadata
        if "setting" in field_metadata:
            if field_key in setting_values:
                field_values[section_field.name] = setting_values[field_key]
        elif "section" in field_metadata:
            field_values[section_field.name] = make_section(
                field_metadata["section"], _within(field_key, setting_values)
            )
        else:
            inner_types = field_metadata["sections"].items()
            field_values[section_field.name] = {
                inner_name: make_section(inner_type, _within(inner_name, setting_values))
                for inner_name, inner_type in inner_types
            }
    return section_type(**field_values)


def flat_section(section: Any) -> dict[str, Value]:
    """Undoes :func:`make_section`: every dotted key with its value."""
    setting_values: dict[str, Value] = {}
    for section_field in fields(section):
        field_key, value = _key(section_field.name), getattr(section, section_field.name)
        if "setting" in section_field.metadata:
            setting_values[field_key] = value
        else:
            inner_sections = {field_key: value} if "section" in section_field.metadata else value
            for inner_name, inner_section in inner_sections.items():
                setting_values |= _under(inner_name, flat_section(inner_section))
    return setting_values


def _key(field_name: str) -> str:
    return field_name.replace("_", "-")


def _under(key_prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{key_prefix}.{key}": value for key, value in values.items()}


def _within(section_key: str, values: Mapping[str, Value]) -> dict[str, Value]:
    key_prefix = f"{section_key}."
    return {
        setting_key.removeprefix(key_prefix): value
        for setting_key, value in values.items()
        if setting_key.startswith(key_prefix)
    }


def _converted(key: str, value: Value, wanted_type: type[Value]) -> Value:
    if wanted_type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted_type:
        raise SettingsError(
            f"{key} = {value!r} is {type(value).__name__}; it must be {TYPE_TEXTS[wanted_type]}"
        )
    return value
