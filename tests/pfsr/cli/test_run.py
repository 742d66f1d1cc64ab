"""The launcher: settings checked before anything starts, and a status that is asked for."""

from __future__ import annotations

import pytest

from pfsr.cli import run as launch
from pfsr_core.runs.files import ITEM_MAP
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.settings.fields import SettingsError
from tests.helpers.runs import write_run
from tests.pfsr_core.serving.test_recommend import serve


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["federation.round=2"], "federation.rounds"),
        (["run.compare=nope"], "run.compare names 'nope'"),
        (["algorithm.name=fecosr"], "Fix: write model.items = 'adapted'"),
        (["run.name=../elsewhere"], "is no name of a directory"),
        (["data.source=file", "data.path=gone.csv"], "data.path = 'gone.csv': no such file"),
        (["data.source=file"], "data.path = '': no such file"),
    ],
)
def test_a_wrong_setting_starts_nothing(monkeypatch, capsys, settings, problem):
    monkeypatch.setattr(launch, "superlink", lambda _home: pytest.fail("started"))
    assert launch.main(["--run-config", *settings]) == 2
    assert problem in capsys.readouterr().err


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PFSR_HOME", raising=False)
    (tmp_path / "mine.csv").touch()
    (tmp_path / "vectors.npz").touch()
    files = ["data.source=file", "data.path=mine.csv"]
    files += ["model.items=semantic", "model.item-vectors=vectors.npz"]
    config = launch.resolve(None, files)
    assert config["run.directory"] == str(tmp_path / "runs")
    assert config["data.path"] == str(tmp_path / "mine.csv")
    assert config["model.item-vectors"] == str(tmp_path / "vectors.npz")


def test_a_name_of_item_vectors_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hashed").touch()
    config = launch.resolve(None, ["model.items=semantic", "model.item-vectors=hashed"])
    assert config["model.item-vectors"] == "hashed"


def test_options_of_a_synthetic_world_are_no_path():
    config = launch.resolve(None, ["data.source=synthetic", "data.path=users=10,items=30"])
    assert config["data.path"] == "users=10,items=30"


def test_runs_go_to_the_home_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    assert launch.resolve(None, [])["run.directory"] == str(tmp_path / "runs")
    assert launch.resolve(None, ["run.directory=/x/y"])["run.directory"] == "/x/y"


def test_a_recipe_that_is_missing_is_named(tmp_path):
    with pytest.raises(SettingsError, match="gone.toml"):
        launch.resolve(tmp_path / "gone.toml", [])


def test_a_resumed_run_has_its_own_settings_whatever_the_defaults_are_now(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    run = tmp_path / "runs" / "old-1"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"train.batch-size": 7, "federation.rounds": 3}')
    config = launch.resolve(None, ["federation.rounds=5"], "old-1")
    assert config["train.batch-size"] == 7
    assert config["federation.rounds"] == 5
    assert config["run.resume"] == "old-1"


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="gone-1 is no run"):
        launch.resolve(None, [], "gone-1")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('{"success": true, "runs": [{"status": "finished:completed"}]}', "finished:completed"),
        ('{"success": true, "runs": [{"status": "finished:failed"}]}', "finished:failed"),
        ('{"success": true, "runs": []}', "unknown"),
        ("not JSON", "unknown"),
        ("[]", "unknown"),
    ],
)
def test_the_status_is_read_out_of_the_list(text, status):
    assert launch.run_status(text) == status


@pytest.mark.parametrize("run", ["tiny", "of another machine"])
def test_the_report_shows_items_where_the_stores_of_the_run_are_here(
    tmp_path, monkeypatch, capsys, run
):
    directory = tmp_path / "runs" / run
    write_run(directory, run__compare="", federation__rounds=1, run__baselines=False)
    served = serve(algorithm__name="fed-avg", model__items="dual")
    NodeStore(tmp_path / "state" / "node-0.sqlite").install(served)
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    monkeypatch.setattr(launch, "launch", lambda _config, _nodes: directory)
    assert launch.main([]) == 0
    said = capsys.readouterr()
    assert f"report: {directory / 'report.html'}" in said.out
    assert (directory / ITEM_MAP).exists() == (run == served.origin.run)
    assert ("no picture of the items" in said.err) == (run != served.origin.run)
