"""The directory that ``flwr run`` makes its bundle of: the checkout, or one put together.

An installed wheel has the packages of the app and its ``pyproject.toml``, but not side by side.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pfsr.recipe_files import recipe_files

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent
PROJECT_FILE = "pyproject.toml"
APP_PACKAGES = ("pfsr_core", "client_app", "server_app")


def app_directory(flower_home: Path, installed_root: Path = CHECKOUT) -> Path:
    """The app's directory.

    Args:
        flower_home: Where one is put together if need be, in ``flower_home / "app"``.
        installed_root: The directory that holds the packages: a checkout, or site-packages.
    """
    if (installed_root / PROJECT_FILE).is_file():
        return installed_root
    app_root = flower_home / "app"
    for name in APP_PACKAGES:
        shutil.copytree(
            installed_root / name, app_root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (app_root / "recipes").mkdir()
    for recipe_path in recipe_files().values():
        shutil.copy(recipe_path, app_root / "recipes")
    for name in (PROJECT_FILE, "README.md", "LICENSE"):
        shutil.copy(installed_root / "pfsr" / "app" / name, app_root / name)
    return app_root
