"""Settings: every value is checked once, and an error says which key and what fits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.algorithms.fed_prox import FedProxSettings
from pfsr_core.assembly.moved_keys import MOVED_KEYS
from pfsr_core.assembly.registries import ALGORITHMS, COMPRESSORS, ENCODERS
from pfsr_core.assembly.settings import (
    DECLARATIONS,
    Settings,
    flat_settings,
    parse_settings,
)
from pfsr_core.items.modes import ITEM_MODES
from pfsr_core.settings.fields import Declaration, SettingsError, Value


def every_setting() -> list[tuple[str, Declaration]]:
    return list(DECLARATIONS.items())


def valid_values(item: Declaration) -> st.SearchStrategy[Value]:
    if item.choices:
        return st.sampled_from(item.choices)
    low, high = item.low, item.high
    if type(item.default) is int:
        return st.integers(None if low is None else int(low), int(high or 10**9))
    if type(item.default) is float:
        return st.floats(low, high, allow_nan=False, allow_infinity=False)
    return st.booleans() if type(item.default) is bool else st.text(max_size=20)


def valid_tables() -> st.SearchStrategy[dict[str, Value]]:
    return st.fixed_dictionaries(
        {}, optional={key: valid_values(item) for key, item in every_setting()}
    )


def test_nothing_given_is_all_defaults() -> None:
    assert parse_settings({}) == Settings()


@given(valid_tables())
def test_round_trip(flat: dict[str, Value]) -> None:
    settings = parse_settings(flat)
    back = flat_settings(settings)
    assert parse_settings(back) == settings
    assert {key: back[key] for key in flat} == flat
    assert set(back) == {key for key, _ in every_setting()}


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("algorithm.rh", "algorithm.pfsr.rho"),
        ("modle.encoder", "model.encoder"),
        ("train.batch_size", "train.batch-size"),
        ("federation.round", "federation.rounds"),
        ("seed", "run.seed"),
    ],
)
def test_unknown_key_suggests_the_nearest(key: str, suggestion: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting '{key}'") as error:
        parse_settings({key: 1})
    assert suggestion in str(error.value)


@pytest.mark.parametrize(("old", "new"), MOVED_KEYS.items())
def test_a_key_that_has_moved_is_refused_with_its_new_name(old: str, new: str) -> None:
    value = DECLARATIONS[new].default
    with pytest.raises(SettingsError, match=f"{old} is called {new} now.*Fix: write {new}"):
        parse_settings({old: value})
    assert old not in DECLARATIONS


def test_the_choices_are_the_registries() -> None:
    assert DECLARATIONS["algorithm.name"].choices == tuple(ALGORITHMS)
    assert DECLARATIONS["model.encoder"].choices == tuple(ENCODERS)
    assert DECLARATIONS["model.compressor"].choices == tuple(COMPRESSORS)
    assert DECLARATIONS["model.items"].choices == tuple(ITEM_MODES)


def test_an_algorithm_has_its_section_and_no_other_has_it() -> None:
    settings = parse_settings({"algorithm.fed-prox.strength": 0.5})
    assert settings.algorithm.own["fed-prox"] == FedProxSettings(strength=0.5)
    assert set(settings.algorithm.own) == {n for n, spec in ALGORITHMS.items() if spec.settings}


def test_unknown_key_without_a_near_one_names_the_sections() -> None:
    with pytest.raises(SettingsError, match="Sections: data, federation, model"):
        parse_settings({"zzzzzzzz": 1})


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("federation.rounds", "ten", "a whole number"),
        ("federation.rounds", 2.5, "a whole number"),
        ("federation.rounds", True, "a whole number"),
        ("train.learning-rate", "0.1", "a number"),
        ("train.learning-rate", False, "a number"),
        ("algorithm.pfsr.two-phases", 1, "true or false"),
        ("run.name", 7, "text in quotes"),
    ],
)
def test_wrong_type(key: str, value: Value, fits: str) -> None:
    with pytest.raises(SettingsError, match=f"{key} = .*must be {fits}"):
        parse_settings({key: value})


@pytest.mark.parametrize(("key", "item"), every_setting())
def test_limits_hold_at_both_ends(key: str, item: Declaration) -> None:
    kind: Any = type(item.default)
    if item.low is not None:
        parse_settings({key: kind(item.low)})
        with pytest.raises(SettingsError, match=f"{key} = .* is below"):
            parse_settings({key: kind(item.low) - 1})
    if item.high is not None:
        parse_settings({key: kind(item.high)})
        with pytest.raises(SettingsError, match=f"{key} = .* is above"):
            parse_settings({key: kind(item.high) + 1})
    if item.choices:
        with pytest.raises(SettingsError, match="Choose one of: .*" + item.choices[0]):
            parse_settings({key: "no such choice"})


@pytest.mark.parametrize("key", ["train.learning-rate", "federation.participation"])
def test_not_a_number_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        parse_settings({key: float("nan")})


def test_a_whole_number_is_a_number() -> None:
    settings = parse_settings({"algorithm.pfsr.anchor-strength": 1})
    assert settings.algorithm.own["pfsr"].anchor_strength == 1.0
    assert type(settings.algorithm.own["pfsr"].anchor_strength) is float


@pytest.mark.parametrize(("key", "item"), every_setting())
def test_every_setting_says_what_it_is(key: str, item: Declaration) -> None:
    assert len(item.help) > 8, key
    assert parse_settings({key: item.default}) == Settings(), "the default must be allowed"
