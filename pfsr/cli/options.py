"""Options that several commands share: a recipe with settings on top, the store of a node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfsr_core.settings.fields import Value

RecipeWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", show_default=False),
]
OutputDirectory = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="New directory for the run's files. Default: runs/NAME-TIME."),
]
StatePath = Annotated[
    Path | None,
    typer.Option(
        "--state", help="Store of a node, or a directory of several. Default: .pfsr/state."
    ),
]
ModelDirectory = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="Directory of a run on this machine or of a saved model, in place of --state.",
    ),
]
RunName = Annotated[
    str, typer.Option("--run", help="Name of the run whose model to use. Default: the last one.")
]


def split_words(recipe_words: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """The recipe's file, None without one, and the ``KEY=VALUE`` texts.

    Raises:
        SettingsError: For an unknown recipe, and for a second word that is no setting.
    """
    from pfsr.recipe_files import recipe_path
    from pfsr_core.settings.fields import SettingsError

    setting_words = [word for word in recipe_words or () if "=" in word]
    recipe_names = [word for word in recipe_words or () if "=" not in word]
    if recipe_words and recipe_names not in ([], [recipe_words[0]]):
        raise SettingsError(
            f"cannot read {recipe_names[-1]!r}: write key=value, e.g. federation.rounds=5; only "
            f"the first word names a recipe"
        )
    return recipe_path(recipe_names[0]) if recipe_names else None, setting_words


def read_words(recipe_words: Sequence[str] | None) -> tuple[dict[str, Value], dict[str, Value]]:
    """Dotted keys of the recipe, and of the settings that replace its own; not checked yet.

    Raises:
        SettingsError: For a recipe that is missing or broken, and for a word that is no setting.
    """
    from pfsr_core.settings.recipes import load_recipe, with_overrides

    recipe_file, overrides = split_words(recipe_words)
    return load_recipe(recipe_file) if recipe_file else {}, with_overrides({}, overrides)


def flat_settings(recipe_words: Sequence[str] | None) -> dict[str, Value]:
    """Dotted keys of the recipe with the settings on top, see :func:`read_words`."""
    recipe_values, overrides = read_words(recipe_words)
    return {**recipe_values, **overrides}


def store_path(state: Path | None, model: Path | None) -> Path:
    """The store that a command uses, or the directory of several.

    Raises:
        ModelFilesError: When ``model`` holds no model.
    """
    from pfsr_core.serving.node_store import default_state_directory

    if model is None:
        return state or default_state_directory()
    if state is not None:
        raise typer.BadParameter("--model stands in place of --state: give one of them")
    from pfsr.model import model_directory
    from pfsr_core.runs.model_files import load_model

    load_model(model_directory(model))  # complete, and as it was saved
    return model_directory(model)
