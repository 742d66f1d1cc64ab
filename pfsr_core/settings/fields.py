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


def section(kind: type[Any], choices: Mapping[str, Collection[str]] | None = None) -> Any:
    """A field that is a section.

    Args:
        kind: The dataclass of the section.
        choices: By key, the texts allowed of those of its settings that name an entry of a
            registry which the section itself does not know.
    """
    return field(default_factory=kind, metadata={"section": kind, "choices": choices or {}})


def sections(kinds: Mapping[str, type[Any]]) -> Any:
    """A field with a section for every name: a mapping. Its own name is no part of their keys."""
    return field(
        default_factory=lambda: {name: kind() for name, kind in kinds.items()},
        metadata={"sections": dict(kinds)},
        hash=False,
    )


def declarations(kind: type[Any]) -> dict[str, Declaration]:
    """Every setting of a section and of the sections in it, by dotted key, in their order."""
    found: dict[str, Declaration] = {}
    for item in fields(kind):
        key, about = _key(item.name), item.metadata
        if "setting" in about:
            found[key] = about["setting"]
        elif "section" in about:
            inner = declarations(about["section"])
            for name, names in about["choices"].items():
                inner[name] = replace(inner[name], choices=tuple(names))
            found |= _under(key, inner)
        else:
            for name, inner_kind in about["sections"].items():
                found |= _under(name, declarations(inner_kind))
    return found


def section_kinds(kind: type[Any], path: str = "") -> dict[str, type[Any]]:
    """A section and the sections in it, by dotted path; its own is ``path``."""
    found = {path: kind}
    start = f"{path}." if path else ""
    for item in fields(kind):
        about = item.metadata
        inner = {_key(item.name): about["section"]} if "section" in about else {}
        for name, inner_kind in (inner or about.get("sections", {})).items():
            found |= section_kinds(inner_kind, start + name)
    return found


def make_section(kind: type[Section], values: Mapping[str, Value]) -> Section:
    """A section from dotted keys, whose values are taken as they are; others have defaults."""
    found: dict[str, Any] = {}
    for item in fields(kind):  # type: ignore[arg-type]
        key, about = _key(item.name), item.metadata
        if "setting" in about:
            found |= {item.name: values[key]} if key in values else {}
        elif "section" in about:
            found[item.name] = make_section(about["section"], _within(key, values))
        else:
            kinds = about["sections"].items()
            found[item.name] = {n: make_section(inner, _within(n, values)) for n, inner in kinds}
    return kind(**found)


def flat_section(made: Any) -> dict[str, Value]:
    """Undoes :func:`make_section`: every dotted key with its value."""
    found: dict[str, Value] = {}
    for item in fields(made):
        key, value = _key(item.name), getattr(made, item.name)
        if "setting" in item.metadata:
            found[key] = value
        else:
            inner = {key: value} if "section" in item.metadata else value
            for name, part in inner.items():
                found |= _under(name, flat_section(part))
    return found


def _key(name: str) -> str:
    return name.replace("_", "-")


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _within(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    start = f"{prefix}."
    return {k.removeprefix(start): value for k, value in values.items() if k.startswith(start)}


def _converted(key: str, value: Value, kind: type[Value]) -> Value:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise SettingsError(
            f"{key} = {value!r} is {type(value).__name__}; it must be {TYPE_TEXTS[kind]}"
        )
    return value
