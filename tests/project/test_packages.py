"""What travels: Flower's bundle to every node, the wheel to whoever installs it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import pytest
from flwr.cli.build import build_fab_from_disk
from hatchling.builders.wheel import WheelBuilder

from pfsr.deploy.app_directory import app_directory

ROOT = Path(__file__).parents[2]
OF_THE_BUNDLE = {"pfsr_core", "client_app", "server_app"}
OF_THE_WHEEL = {"pfsr", *OF_THE_BUNDLE}
RECIPES = {path.name for path in ROOT.glob("recipes/*.toml")}


def tree(packages: set[str], suffixes: tuple[str, ...]) -> set[str]:
    """All files of the packages in this checkout."""
    return {
        path.relative_to(ROOT).as_posix()
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.suffix in suffixes or path.name == "py.typed"
    }


def bundle_names(app: Path) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))) as bundle:
        return {name for name in bundle.namelist() if not name.startswith(".info/")}


@pytest.fixture(scope="module")
def bundle() -> set[str]:
    return bundle_names(ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like site-packages, with nothing but the wheel."""
    directory = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(directory)
    return directory


def run_installed(installed: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=installed,
    )
    return done.stdout.strip()


def test_the_bundle_holds_the_app_and_nothing_else(bundle: set[str]) -> None:
    code = {name for name in tree(OF_THE_BUNDLE, (".py",)) if name.endswith(".py")}
    own = {"pyproject.toml", "README.md", "LICENSE"} | {f"recipes/{name}" for name in RECIPES}
    assert bundle == (code | own) - {"server_app/launch.py"}


@pytest.mark.parametrize(
    "foreign", ["pfsr", "experiments", "benchmarks", "tests", "kernels", "docs", "docker"]
)
def test_nothing_else_of_the_repository_reaches_a_node(bundle: set[str], foreign: str) -> None:
    assert foreign not in {PurePosixPath(name).parts[0] for name in bundle}
    assert not any("attack" in name for name in bundle)


def test_the_wheel_holds_four_packages_and_the_recipes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    data = {f"pfsr/recipes/{name}" for name in RECIPES}
    data |= {f"pfsr/app/{name}" for name in ("pyproject.toml", "README.md", "LICENSE")}
    assert names == tree(OF_THE_WHEEL, (".py",)) | data


def test_the_wheel_has_readme_license_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        facts = Parser().parsestr(file.read(metadata).decode("utf-8"))
        folder = metadata.rpartition("/")[0]
        assert b"Apache License" in file.read(f"{folder}/licenses/LICENSE")
        assert b"pfsr = pfsr.cli.main:app" in file.read(f"{folder}/entry_points.txt")
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts.get_payload() == (ROOT / "README.md").read_text("utf-8")


def test_recipes_are_found_by_name_without_a_checkout(installed: Path) -> None:
    code = (
        "import json, pfsr.recipe_files as r; from pfsr_core.settings.recipes import load_recipe; "
        "print(json.dumps({n: [str(p), load_recipe(p)['run.name']] "
        "for n, p in r.recipe_files().items()}))"
    )
    found = json.loads(run_installed(installed, "-c", code))
    assert {f"{name}.toml" for name in found} == RECIPES
    for name, (path, run_name) in found.items():
        assert path == str(installed / "pfsr" / "recipes" / f"{name}.toml")
        assert run_name == name


def test_the_installed_command_helps(installed: Path) -> None:
    assert "Usage: pfsr" in run_installed(installed, "-m", "pfsr", "run", "--help")


def test_an_installed_wheel_gives_flower_the_same_bundle(
    installed: Path, bundle: set[str], tmp_path: Path
) -> None:
    app = app_directory(tmp_path, installed)
    assert app == tmp_path / "app"
    assert bundle_names(app) == bundle


def test_a_checkout_is_its_own_app(tmp_path: Path) -> None:
    assert app_directory(tmp_path) == ROOT
