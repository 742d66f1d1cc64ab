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
PACKAGES = ("pfsr_core", "client_app", "server_app")


def app_directory(home: Path, installed: Path = CHECKOUT) -> Path:
    """The app's directory.

    Args:
        home: Where one is put together if need be, in ``home / "app"``.
        installed: The directory that holds the packages: a checkout, or site-packages.
    """
    if (installed / PROJECT_FILE).is_file():
        return installed
    app = home / "app"
    for name in PACKAGES:
        shutil.copytree(installed / name, app / name, ignore=shutil.ignore_patterns("__pycache__"))
    (app / "recipes").mkdir()
    for path in recipe_files().values():
        shutil.copy(path, app / "recipes")
    for name in (PROJECT_FILE, "README.md", "LICENSE"):
        shutil.copy(installed / "pfsr" / "app" / name, app / name)
    return app
