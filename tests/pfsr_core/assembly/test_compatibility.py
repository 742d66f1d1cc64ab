"""Settings that do not go together or that nothing would read are refused, and no recipe is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfsr_core.assembly.compatibility import algorithm_names, check_settings
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.runs.local import central_values
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.settings.recipes import load_recipe
from tests.helpers.tiny import tiny_settings

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
REFUSED: list[tuple[dict[str, Value], str]] = [
    ({"algorithm__name": "pfedrec", "train__negatives": 5}, "no next item.*negatives = 0"),
    (
        {"algorithm__name": "pfedrec", "model__compressor": "tokens"},
        "no next item.*compressor = 'identity'",
    ),
    (
        {"algorithm__name": "pfedrec", "model__personal_memory": True},
        "no next item.*personal-memory = False",
    ),
    (
        {"algorithm__server__learning_rate": 50.0},
        r"server\.optimizer = 'average'.*server.learning-rate = 1\.0",
    ),
    ({"algorithm__server__decay": 0.9}, r"server\.optimizer = 'average'.*server.decay = 1\.0"),
    (
        {"algorithm__server__optimizer": "momentum", "algorithm__server__epsilon": 1.0},
        r"server\.optimizer = 'momentum'.*server.epsilon = 0\.001",
    ),
    (
        {"model__items": "dual", "model__item_vectors": "vectors.npz"},
        "no effect with model.items = 'dual'.*item-vectors = 'tf-idf'",
    ),
    (
        {"model__items": "shared", "model__item_start": "secret"},
        "starts private tables.*item-start = 'common'",
    ),
]
USED: list[dict[str, Value]] = [
    {"algorithm__server__optimizer": "momentum", "algorithm__server__learning_rate": 50.0},
    {"algorithm__server__optimizer": "adam", "algorithm__server__epsilon": 1.0},
    {"model__items": "semantic", "model__item_vectors": "hashed"},
    {"model__items": "shared", "model__item_vectors": "hashed", "train__semantic_share": 0.3},
    {"model__item_start": "secret"},
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_nothing_would_read_is_refused(changes: dict[str, Value], message: str) -> None:
    settings = tiny_settings(**changes)
    with pytest.raises(SettingsError, match=message):
        check_settings(settings.algorithm.name, settings)


@pytest.mark.parametrize("changes", USED)
def test_what_is_read_is_not(changes: dict[str, Value]) -> None:
    check_settings("pfsr", tiny_settings(**changes))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("changes", [{}, {"model.item-vectors": "hashed"}])
def test_every_recipe_can_be_run_and_trained_centrally(
    recipe: Path, changes: dict[str, Value]
) -> None:
    flat = load_recipe(recipe)
    algorithm_names(parse_settings(flat))
    settings = parse_settings(central_values({**flat, **changes}))
    assert algorithm_names(settings) == ["fed-avg"]
    assert settings.train.optimizer == "adam", "one client takes many steps"
