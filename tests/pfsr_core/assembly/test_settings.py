"""Settings: every value is checked once, and an error says which key and what fits."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.assembly.settings import SECTIONS, Settings, flat_settings, parse_settings
from pfsr_core.settings.fields import SettingsError, Value


def every_setting() -> list[tuple[str, Any]]:
    return [
        (f"{section}.{item.name.replace('_', '-')}", item)
        for section, kind in SECTIONS.items()
        for item in fields(kind)
    ]


def valid_values(item: Any) -> st.SearchStrategy[Value]:
    limits = item.metadata
    if "choices" in limits:
        return st.sampled_from(limits["choices"])
    low, high = limits.get("low"), limits.get("high")
    if type(item.default) is int:
        return st.integers(low, high if high is not None else 10**9)
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
        ("algorithm.rh", "algorithm.rho"),
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
        ("algorithm.two-phases", 1, "true or false"),
        ("run.name", 7, "text in quotes"),
    ],
)
def test_wrong_type(key: str, value: Value, fits: str) -> None:
    with pytest.raises(SettingsError, match=f"{key} = .*must be {fits}"):
        parse_settings({key: value})


@pytest.mark.parametrize(("key", "item"), every_setting())
def test_limits_hold_at_both_ends(key: str, item: Any) -> None:
    kind, limits = type(item.default), item.metadata
    if "low" in limits:
        parse_settings({key: kind(limits["low"])})
        with pytest.raises(SettingsError, match=f"{key} = .* is below"):
            parse_settings({key: kind(limits["low"]) - 1})
    if "high" in limits:
        parse_settings({key: kind(limits["high"])})
        with pytest.raises(SettingsError, match=f"{key} = .* is above"):
            parse_settings({key: kind(limits["high"]) + 1})
    if "choices" in limits:
        with pytest.raises(SettingsError, match="Choose one of: .*" + limits["choices"][0]):
            parse_settings({key: "no such choice"})


@pytest.mark.parametrize("key", ["train.learning-rate", "federation.participation"])
def test_not_a_number_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=key):
        parse_settings({key: float("nan")})


def test_a_whole_number_is_a_number() -> None:
    settings = parse_settings({"algorithm.keep-strength": 1})
    assert settings.algorithm.keep_strength == 1.0
    assert type(settings.algorithm.keep_strength) is float


@pytest.mark.parametrize(("key", "item"), every_setting())
def test_every_setting_says_what_it_is(key: str, item: Any) -> None:
    assert len(item.metadata["help"]) > 8, key
    assert parse_settings({key: item.default}) == Settings(), "the default must be allowed"
