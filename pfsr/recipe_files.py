"""Recipes by name: from a checkout, where they lie at the top, or from an installed wheel."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pfsr_core.settings.fields import SettingsError

PACKAGE_DIRECTORY = Path(__file__).resolve().parent
RECIPE_DIRECTORIES = (PACKAGE_DIRECTORY / "recipes", PACKAGE_DIRECTORY.parent / "recipes")
"""In a wheel beside this file, in a checkout beside the package."""


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe.

    Args:
        recipe: A name such as ``"pfsr"``, or the path of a TOML file.

    Raises:
        SettingsError: For a name that no recipe has. A path is not looked at here.
    """
    given_path = Path(recipe).expanduser()
    if given_path.suffix or len(given_path.parts) > 1 or given_path.is_file():
        return given_path
    known_recipes = recipe_files()
    if str(recipe) in known_recipes:
        return known_recipes[str(recipe)]
    close_names = get_close_matches(str(recipe), known_recipes, 1, 0.5)
    hint = f" Did you mean {close_names[0]}?" if close_names else ""
    raise SettingsError(
        f"no recipe {str(recipe)!r}.{hint} Fix: choose one of {', '.join(known_recipes)}, or give "
        f"the path of a TOML file; a setting is written key=value."
    )


def recipe_files() -> dict[str, Path]:
    """All recipes that come with the project, by name in alphabetical order."""
    toml_paths = (path for folder in RECIPE_DIRECTORIES for path in sorted(folder.glob("*.toml")))
    return {path.stem: path for path in toml_paths}
