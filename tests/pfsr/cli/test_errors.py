"""Mistakes at the command line: each is said with its place and its fix, and loses nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pfsr_core.runs import local as plain_run
from pfsr_core.serving.node_store import NodeStore
from tests.helpers.command_line import fail, pfsr, succeed
from tests.pfsr.cli.test_commands import SETTINGS
from tests.pfsr_core.serving.test_recommend import serve, some_user


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    succeed("run", "--local", *SETTINGS, "federation.rounds=1", "--out", run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("train.learning-rate=inf", "train.learning-rate = inf: write a finite number"),
        ("model.dropout=nan", "model.dropout = nan: write a finite number"),
        ("run.name=../elsewhere", "is no name of a directory. Fix: "),
        ("run.name=a/b", "is no name of a directory. Fix: "),
        ("run.name=", "is no name of a directory. Fix: "),
        ("run.resume=pfsr-20250131-120000", "keeps nothing to continue from. Fix: "),
        ("run.warm-start=pfsr-20250131-120000", "keeps nothing to continue from. Fix: "),
        ("federation.partition=column", "Fix: federation.column = "),
        ("federation.values=ca uk", "Fix: federation.column = "),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused(
    setting: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problem in fail("run", "--local", *SETTINGS, setting)
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (["model.num-heads=3"], "num_heads=3 does not divide"),
        (["model.encoder=sasrec", "model.num-heads=3"], "num_heads=3 does not divide"),
        (["model.compressor=tokens"], "tokens need attention"),
        (["model.items=semantic", "model.item-vectors=no.npz"], "no.npz"),
    ],
)
def test_a_model_that_cannot_be_built_leaves_no_run(
    settings: list[str], problem: str, tmp_path: Path
) -> None:
    result = pfsr("run", "--local", *SETTINGS, *settings, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert problem in result.stderr and "Fix: " in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_diverged_model_names_the_step_size(tmp_path: Path) -> None:
    steps = ["train.optimizer=sgd", "train.learning-rate=1e30"]
    result = pfsr("run", "--local", *SETTINGS, *steps, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "the model has diverged. Fix: lower train.learning-rate" in result.stderr


def test_a_stopped_run_says_how_to_look_at_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plain_run, "write_clients", stop)
    result = pfsr("run", "--local", *SETTINGS, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert f"stopped; what is there: pfsr report {tmp_path / 'run'}" in result.stdout
    assert "pfsr (round " in succeed("report", tmp_path / "run")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--local", *SETTINGS, "--out", "file/run"],
        ["data", "prepare", "synthetic", "--out", "file"],
    ],
)
def test_a_path_that_cannot_be_written_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = pfsr(*words)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: file") and "Fix: give a path" in result.stderr


@pytest.mark.parametrize("command", ["prepare", "clean"])
def test_a_result_replaces_no_source(command: str, tmp_path: Path) -> None:
    source = tmp_path / "interactions.csv"
    source.write_text("user,item,timestamp\n" + "".join(f"u,{i},{i}\n" for i in range(6)))
    before = source.read_bytes()
    words = ("data", command, "file", "--path", source, "--out")
    assert "Fix: give --out another directory" in fail(*words, tmp_path)
    assert source.read_bytes() == before and list(tmp_path.iterdir()) == [source]


def test_a_path_in_place_of_a_dataset_says_how_to_read_it() -> None:
    assert "file --path shop.csv" in fail("data", "describe", "shop.csv")


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("summary.json", "{", "summary.json is broken"),
        ("summary.json", '{"methods": 3}', "summary.json: methods is no list"),
        ("summary.json", '{"methods": ["pfsr"]}', "summary.json: methods is no list"),
        ("summary.json", '{"methods": [{"best": {}}]}', "summary.json: methods is no list"),
        (
            "summary.json",
            json.dumps({"methods": [{"method": "a", "best": {"test/seen-filtered/hr@10": "x"}}]}),
            "summary.json: methods is no list",
        ),
        ("config.json", '{"run.selected-by": "votes"}', "run.selected-by = 'votes'"),
        ("metrics.jsonl", "\udcff\n{}\n", "metrics.jsonl, line 1: not a round"),
    ],
)
def test_a_broken_file_of_a_run_is_named(name: str, text: str, problem: str, run: Path) -> None:
    (run / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    message = fail("report", run)
    assert problem in message and "Fix: " in message


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "node.sqlite"
    NodeStore(path).install(serve())
    return path


@pytest.mark.parametrize("wrong", [["-k", "0"], ["--client", "nobody's"]])
def test_a_question_without_an_answer_keeps_no_interaction(wrong: list[str], store: Path) -> None:
    user = some_user(serve())[1]
    best = succeed("recommend", "--state", store, "-u", user, "-k", 1).splitlines()[1].split()[1]
    assert "Fix: " in fail("recommend", "--state", store, "-u", user, "--add", best, *wrong)
    again = succeed("recommend", "--state", store, "-u", user, "-k", 1)
    assert again.splitlines()[1].split()[1] == best, "nothing was added"


def test_nothing_to_add_is_said(store: Path) -> None:
    user = some_user(serve())[1]
    for nothing in ("", " , "):
        assert "no item to add" in fail("recommend", "--state", store, "-u", user, "--add", nothing)


def test_forgetting_where_no_store_is_does_not_look_like_success(tmp_path: Path) -> None:
    assert "no such file" in fail("forget", "--state", tmp_path / "no.sqlite", "-u", "1")


@pytest.mark.parametrize("words", [["--key", "k"], ["--root-certificates", "c"], ["--insecure"]])
def test_doctor_refuses_what_it_would_not_look_at(words: list[str]) -> None:
    result = pfsr("doctor", *words)
    assert result.exit_code == 2
    assert "--superlink" in result.stderr


@pytest.mark.parametrize("nodes", ["0", "-1", "two"])
def test_a_run_needs_a_node(nodes: str) -> None:
    result = pfsr("run", "--nodes", nodes)
    assert result.exit_code == 2
    assert "--nodes" in result.stderr


@pytest.mark.parametrize(
    "words",
    [("--local", "--nodes", 2), ("--local", "--resume", "x"), ("--out", "x")],
)
def test_options_of_the_other_way_to_run_are_refused(words: tuple[object, ...]) -> None:
    result = pfsr("run", *words)
    assert result.exit_code == 2
    assert "--local" in result.stderr


@pytest.mark.parametrize(
    ("words", "new"),
    [
        (("simulate", "--recipe", "recipes/pfsr.toml"), "pfsr run --local"),
        (("item-views",), "pfsr item-map"),
        (("bench", "scan"), "python -m benchmarks"),
        (("run", "--local", "--recipe", "recipes/pfsr.toml"), "as the first word"),
        (("run", "--run-config", "federation.rounds=5"), "write KEY=VALUE alone"),
        (("central", "-s", "federation.rounds=5"), "write KEY=VALUE alone"),
        (("baselines", "--set=federation.rounds=5"), "write KEY=VALUE alone"),
    ],
)
def test_an_old_command_names_the_new_one(words: tuple[str, ...], new: str) -> None:
    message = fail(*words)
    assert new in message and "Fix: " in message


def test_the_old_launcher_names_the_new_command() -> None:
    command = [sys.executable, "-m", "server_app.launch", "--recipe", "recipes/pfsr.toml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Fix: pfsr run" in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["pfrs"], "no recipe 'pfrs'. Did you mean pfsr?"),
        (["pfsr", "smoke"], "cannot read 'smoke'"),
        (["federation.rounds=5", "pfsr"], "cannot read 'pfsr'"),
    ],
)
def test_a_recipe_is_named_once_and_first(words: list[str], problem: str) -> None:
    assert problem in fail("run", "--local", *words)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("data describe", "SOURCE is a dataset's name"),
        ("data fetch", "NAME is ml-100k or ml-1m"),
        ("report", "RUN is the directory"),
        ("deploy init", "DIRECTORY is where"),
        ("deploy key", "PATH is where"),
    ],
)
def test_help_says_what_an_argument_means(command: str, words: str) -> None:
    assert words in succeed(*command.split(), "--help")


def test_help_of_deploy_keeps_its_lines() -> None:
    lines = [line.strip() for line in succeed("deploy", "--help").splitlines()]
    assert "pfsr deploy superlink tls" in lines
