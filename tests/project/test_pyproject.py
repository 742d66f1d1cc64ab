"""pyproject.toml and the settings say the same, and every recipe is one that Flower will take."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.assembly.settings import Settings, flat_settings, parse_settings
from pfsr_core.settings.recipes import flatten_tables, load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def flower():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]


def test_flower_knows_every_setting_with_the_same_default_and_type():
    config = flatten_tables(flower()["config"], "pyproject.toml")
    expected = flat_settings(Settings())
    assert config == expected
    assert {k: type(v) for k, v in config.items()} == {k: type(v) for k, v in expected.items()}


def test_the_bundle_holds_all_three_packages_and_nothing_that_is_not_there():
    patterns = [pattern.removeprefix("/") for pattern in flower()["fab-include"]]
    assert {pattern.split("/")[0] for pattern in patterns} >= {
        "pfsr_core",
        "client_app",
        "server_app",
    }
    for pattern in patterns:
        assert list(ROOT.glob(pattern)), pattern


def test_the_components_exist():
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp

    from client_app.app import app as client
    from server_app.app import app as server

    assert flower()["components"] == {
        "clientapp": "client_app.app:app",
        "serverapp": "server_app.app:app",
    }
    assert isinstance(client, ClientApp)
    assert isinstance(server, ServerApp)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    settings = parse_settings(load_recipe(path))
    assert settings.algorithm.name in ALGORITHMS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_flower_takes_every_recipe_as_a_run_config(path):
    """Nested tables are flattened, and no key is one that the app does not list."""
    from flwr.common.config import flatten_dict, fuse_dicts, parse_config_args

    fused = fuse_dicts(flatten_dict(flower()["config"]), parse_config_args([str(path)]))
    assert parse_settings(fused) == parse_settings(load_recipe(path))


def test_flower_takes_nested_keys_on_its_command_line():
    from flwr.common.config import flatten_dict, fuse_dicts, parse_config_args

    words = ['algorithm.pfsr.rho=0.5 algorithm.server.optimizer="adam"']
    fused = fuse_dicts(flatten_dict(flower()["config"]), parse_config_args(words))
    settings = parse_settings(fused)
    assert settings.algorithm.own["pfsr"].rho == 0.5
    assert settings.algorithm.server.optimizer == "adam"


def test_there_is_a_recipe_for_every_algorithm():
    named = {parse_settings(load_recipe(path)).algorithm.name for path in RECIPES}
    assert named == set(ALGORITHMS)
