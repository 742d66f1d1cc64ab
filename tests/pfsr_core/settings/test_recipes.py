"""Recipes and overrides: from text to dotted keys, with the place of every mistake."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsr_core.assembly.settings import parse_settings
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.settings.recipes import (
    flatten_tables,
    load_recipe,
    parse_override,
    toml_value,
    with_overrides,
)

RECIPES = Path(__file__).parents[3] / "recipes"


def test_nested_tables_become_dotted_keys(tmp_path: Path) -> None:
    recipe = tmp_path / "a.toml"
    recipe.write_text('run.name = "x"\n[algorithm.pfsr]\nmask-mode = "none"\ntwo-phases = false\n')
    expected = {
        "run.name": "x",
        "algorithm.pfsr.mask-mode": "none",
        "algorithm.pfsr.two-phases": False,
    }
    assert load_recipe(recipe) == expected


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_valid(recipe: Path) -> None:
    parse_settings(load_recipe(recipe))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"[run\nname = 1", r"not valid TOML \(.*line 1"),
        (b'run.name = "\xff"', "not UTF-8"),
        (b"federation.sizes = [1, 2]", "federation.sizes is a list"),
        (b"run.seed = 2025-01-31", "run.seed is a date"),
    ],
)
def test_broken_recipe_names_file_and_fix(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    recipe = tmp_path / "broken.toml"
    if content is not None:
        recipe.write_bytes(content)
    if content is not None and b"sizes" in content:
        reason = "sizes is a list"
    elif content is not None and b"seed" in content:
        reason = "seed is a date"
    with pytest.raises(SettingsError, match=f"broken.toml: .*{reason}.*Fix: "):
        load_recipe(recipe)


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Fix: "):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.batch-size=32", ("train.batch-size", 32)),
        ("algorithm.pfsr.rho = 0.5", ("algorithm.pfsr.rho", 0.5)),
        ("algorithm.pfsr.two-phases=false", ("algorithm.pfsr.two-phases", False)),
        ("data.source=synthetic", ("data.source", "synthetic")),
        ("data.path=users=5,items=6", ("data.path", "users=5,items=6")),
        ('run.name="a b"', ("run.name", "a b")),
        ("run.compare=fed-avg local-only", ("run.compare", "fed-avg local-only")),
        ("run.name=", ("run.name", "")),
    ],
)
def test_override(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected
    assert type(parse_override(text)[1]) is type(expected[1])


@pytest.mark.parametrize("text", ["", "rounds", "=5"])
def test_override_without_key_or_value(text: str) -> None:
    with pytest.raises(SettingsError, match="write key=value"):
        parse_override(text)


def test_override_of_a_list() -> None:
    with pytest.raises(SettingsError, match="federation.sizes"):
        parse_override("federation.sizes=[1, 2]")


def test_overrides_win_and_the_last_one_counts() -> None:
    flat = {"run.seed": 1, "run.name": "x"}
    assert with_overrides(flat, ["run.seed=2", "run.seed=3"]) == {"run.seed": 3, "run.name": "x"}
    assert flat["run.seed"] == 1


names = st.text("abc-", min_size=1, max_size=4)
scalars = st.booleans() | st.integers() | st.text(max_size=5)


@given(st.dictionaries(names, st.dictionaries(names, scalars, max_size=4), max_size=4))
def test_flattening_loses_nothing(tables: dict[str, dict[str, object]]) -> None:
    flat = flatten_tables(tables, "here")
    expected = {
        (table, key): value for table, rows in tables.items() for key, value in rows.items()
    }
    assert {tuple(key.split(".")): value for key, value in flat.items()} == expected


@pytest.mark.parametrize("value", [True, 3, 0.1, 1e-9, "", 'a "b" \\ c', "ä"])
def test_values_survive_the_run_config(value: Value) -> None:
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value
