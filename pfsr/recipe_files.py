"""Recipes by name: from a checkout, where they lie at the top, or from an installed wheel."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from pfsr_core.settings.fields import SettingsError

PACKAGE = Path(__file__).resolve().parent
DIRECTORIES = (PACKAGE / "recipes", PACKAGE.parent / "recipes")
"""In a wheel beside this file, in a checkout beside the package."""


def recipe_path(recipe: str | Path) -> Path:
    """The file of a recipe.

    Args:
        recipe: A name such as ``"pfsr"``, or the path of a TOML file.

    Raises:
        SettingsError: For a name that no recipe has. A path is not looked at here.
    """
    given = Path(recipe).expanduser()
    if given.suffix or len(given.parts) > 1 or given.is_file():
        return given
    known = recipe_files()
    if str(recipe) in known:
        return known[str(recipe)]
    near = get_close_matches(str(recipe), known, 1, 0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SettingsError(
        f"no recipe {str(recipe)!r}.{hint} Fix: choose one of {', '.join(known)}, or give the path "
        f"of a TOML file; a setting is written key=value."
    )


def recipe_files() -> dict[str, Path]:
    """All recipes that come with the project, by name in alphabetical order."""
    found = (path for folder in DIRECTORIES for path in sorted(folder.glob("*.toml")))
    return {path.stem: path for path in found}
