"""Sections in sections: keys are paths, and what is not given has its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfsr_core.settings.fields import (
    declarations,
    flat_section,
    make_section,
    section,
    section_kinds,
    sections,
    setting,
)


@dataclass(frozen=True)
class Deepest:
    step_size: float = setting(0.5, "step size of the deepest part", low=0.0)


@dataclass(frozen=True)
class Inner:
    kind: str = setting("a", "which part is used")
    deepest: Deepest = section(Deepest)


@dataclass(frozen=True)
class Outer:
    seed: int = setting(0, "seed of the outer part", low=0, high=9)
    inner: Inner = section(Inner, choices={"kind": {"a": 1, "b": 2}})
    named: Mapping[str, Any] = sections({"some-one": Deepest})


def test_keys_are_paths_in_order() -> None:
    keys = ["seed", "inner.kind", "inner.deepest.step-size", "some-one.step-size"]
    assert list(declarations(Outer)) == keys
    assert list(flat_section(Outer())) == keys


def test_choices_of_a_registry_are_given_where_the_section_is_used() -> None:
    assert declarations(Outer)["inner.kind"].choices == ("a", "b")
    assert declarations(Inner)["kind"].choices == ()


def test_values_reach_their_section() -> None:
    made = make_section(Outer, {"inner.deepest.step-size": 2.0, "some-one.step-size": 3.0})
    assert made == Outer(inner=Inner(deepest=Deepest(2.0)), named={"some-one": Deepest(3.0)})
    assert make_section(Outer, flat_section(made)) == made
    assert make_section(Outer, {}) == Outer()


def test_every_section_is_known_by_its_path() -> None:
    assert section_kinds(Outer) == {
        "": Outer,
        "inner": Inner,
        "inner.deepest": Deepest,
        "some-one": Deepest,
    }


def test_two_values_share_no_section() -> None:
    assert Outer().named is not Outer().named
    assert hash(Outer()) == hash(Outer())
