"""``pfsr run`` through Flower: settings checked before anything starts, the status asked for."""

from __future__ import annotations

import pytest

from pfsr.cli.run import run_config
from pfsr.deploy import launch
from pfsr_core.runs.files import ITEM_MAP
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.recipes import with_overrides
from tests.helpers.command_line import fail, pfsr
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
def test_a_wrong_setting_starts_nothing(monkeypatch, settings, problem):
    monkeypatch.setattr(launch, "superlink", lambda _home: pytest.fail("started"))
    assert problem in fail("run", *settings)


def test_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PFSR_HOME", raising=False)
    (tmp_path / "mine.csv").touch()
    (tmp_path / "vectors.npz").touch()
    files = ["data.source=file", "data.path=mine.csv"]
    files += ["model.items=semantic", "model.item-vectors=vectors.npz"]
    config = run_config(with_overrides({}, files))
    assert config["run.directory"] == str(tmp_path / "runs")
    assert config["data.path"] == str(tmp_path / "mine.csv")
    assert config["model.item-vectors"] == str(tmp_path / "vectors.npz")


def test_a_name_of_item_vectors_is_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hashed").touch()
    config = run_config(with_overrides({}, ["model.items=semantic", "model.item-vectors=hashed"]))
    assert config["model.item-vectors"] == "hashed"


def test_options_of_a_synthetic_world_are_no_path():
    config = run_config({"data.source": "synthetic", "data.path": "users=10,items=30"})
    assert config["data.path"] == "users=10,items=30"


def test_runs_go_to_the_home_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    assert run_config({})["run.directory"] == str(tmp_path / "runs")
    assert run_config(with_overrides({}, ["run.directory=/x/y"]))["run.directory"] == "/x/y"


def test_a_recipe_that_is_missing_is_named(tmp_path):
    assert "gone.toml" in fail("run", tmp_path / "gone.toml")


def test_a_run_that_fails_has_exit_status_1(monkeypatch):
    def failing(_config, _nodes):
        raise launch.LaunchError("the run ended as 'finished:failed'")

    monkeypatch.setattr(launch, "launch", failing)
    result = pfsr("run", "smoke")
    assert result.exit_code == 1
    assert result.stderr == "error: the run ended as 'finished:failed'\n"


def test_a_resumed_run_has_its_own_settings_whatever_the_defaults_are_now(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    run = tmp_path / "runs" / "old-1"
    run.mkdir(parents=True)
    (run / "config.json").write_text('{"train.batch-size": 7, "federation.rounds": 3}')
    config = run_config({"federation.rounds": 5}, "old-1")
    assert config["train.batch-size"] == 7
    assert config["federation.rounds"] == 5
    assert config["run.resume"] == "old-1"


def test_a_run_that_is_not_there_cannot_be_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="gone-1 is no run"):
        run_config({}, "gone-1")


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
def test_the_report_shows_items_where_the_stores_of_the_run_are_here(tmp_path, monkeypatch, run):
    directory = tmp_path / "runs" / run
    write_run(directory, run__compare="", federation__rounds=1, run__baselines=False)
    served = serve(algorithm__name="fed-avg", model__items="dual")
    NodeStore(tmp_path / "state" / "node-0.sqlite").install(served)
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    monkeypatch.setattr(launch, "launch", lambda _config, _nodes: directory)
    result = pfsr("run")
    assert result.exit_code == 0
    assert f"report: {directory / 'report.html'}" in result.stdout
    assert (directory / ITEM_MAP).exists() == (run == served.origin.run)
    assert ("no item map in the report" in result.stderr) == (run != served.origin.run)
