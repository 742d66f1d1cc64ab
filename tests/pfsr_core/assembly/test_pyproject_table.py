"""What is written from the declarations: complete, idempotent, and found stale when it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from pfsr_core.assembly.pyproject_table import (
    PYPROJECT_FILE,
    SETTINGS_PAGE,
    run_config,
    settings_page,
    settings_text,
    stale_files,
    write_files,
)
from pfsr_core.assembly.settings import DECLARATIONS, Settings, flat_settings
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.recipes import flatten_tables

ROOT = Path(__file__).parents[3]


def test_the_files_of_this_checkout_are_fresh() -> None:
    assert stale_files(ROOT) == []


def test_the_run_config_holds_every_setting() -> None:
    tables = tomllib.loads(run_config())["tool"]["flwr"]["app"]["config"]
    assert flatten_tables(tables, "here") == flat_settings(Settings())


def test_flower_flattens_the_tables_to_the_same_keys() -> None:
    from flwr.common.config import flatten_dict

    tables = tomllib.loads(run_config())["tool"]["flwr"]["app"]["config"]
    assert flatten_dict(tables) == flat_settings(Settings())


def test_the_page_says_what_every_setting_means() -> None:
    page = settings_page()
    for key, declared in DECLARATIONS.items():
        name = key.rpartition(".")[2]
        assert f"| `{name}` | " in page, key
        assert declared.help.split(":")[0].replace("<", "&lt;")[:40] in page, key


def test_stale_files_are_written_and_nothing_else_of_them_changes(tmp_path: Path) -> None:
    text = (ROOT / PYPROJECT_FILE).read_text("utf-8")
    (tmp_path / PYPROJECT_FILE).write_text(text.replace("rho = 0.25", "rho = 0.5"), "utf-8")
    assert stale_files(tmp_path) == [tmp_path / PYPROJECT_FILE, tmp_path / SETTINGS_PAGE]
    assert write_files(tmp_path) == [tmp_path / PYPROJECT_FILE, tmp_path / SETTINGS_PAGE]
    assert (tmp_path / PYPROJECT_FILE).read_text("utf-8") == text
    assert write_files(tmp_path) == []


def test_elsewhere_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Fix: run this in a checkout"):
        write_files(tmp_path)


def test_the_list_may_be_narrowed() -> None:
    text = settings_text("algorithm.pfsr")
    assert text.startswith('algorithm.pfsr.mask-mode = "quantile"')
    assert "train." not in text
    with pytest.raises(SettingsError, match="no setting begins with 'nothing'.*Fix: choose among"):
        settings_text("nothing")
