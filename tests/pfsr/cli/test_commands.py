"""The command line: every command once, and every mistake in one line with exit status 2."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.run import arm_settings
from pfsr.cli import examination
from pfsr.cli.train import central_flat
from pfsr_core.assembly.settings import Settings, parse_settings
from pfsr_core.data.datasets import load_dataset
from pfsr_core.data.splits import leave_one_out
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.items.text_vectors import words_of
from pfsr_core.models.ops import kernel_calls
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.settings.recipes import load_recipe, with_overrides
from tests.helpers.command_line import fail, pfsr, succeed
from tests.helpers.tiny import TINY
from tests.pfsr_core.serving.test_recommend import serve, some_user

DEPLOY = ["init", "certificate", "profile", "superlink", "key", "register", "node"]
SETTINGS = [f"{key}={json.dumps(value)}" for key, value in TINY.items()] + ["federation.rounds=2"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in TINY.items()))
    return path


@pytest.mark.parametrize(
    "command",
    ["run", "central", "baselines", "recommend", "item-map", "forget", "report", "doctor"]
    + ["data fetch", "data describe", "data prepare"]
    + [f"deploy {name}" for name in DEPLOY],
)
def test_help_of_every_command(command: str) -> None:
    text = succeed(*command.split(), "--help")
    assert f"pfsr {command}" in text.replace("root", "pfsr")
    assert "Example" in text


def test_help_names_every_command() -> None:
    text = succeed("--help")
    for name in ("data", "run", "central", "baselines", "recommend", "report", "doctor"):
        assert f" {name} " in text
    assert " deploy " in text
    text = succeed("deploy", "--help")
    for name in DEPLOY:
        assert f" {name} " in text


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'flwr', 'grpc', 'torch', 'cryptography', 'pandas', 'matplotlib'}"
    code = f"import sys, pfsr.cli.main; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_local_run_writes_a_run_that_report_reads(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = succeed("run", "--local", recipe, "federation.rounds=2", "--out", out)
    assert "pfsr  round 2/2" in text
    assert "24 users in 6 clients" in text
    assert f"report: {out / 'report.html'}" in text
    (out / "report.html").unlink()
    again = succeed("report", out)
    assert (out / "report.html").is_file()
    assert again.splitlines()[2] in text, "the same table"


def test_a_local_run_refuses_to_write_over_a_run(recipe: Path, tmp_path: Path) -> None:
    message = fail("run", "--local", recipe, "--out", tmp_path)
    assert "exists already. Fix: " in message


def test_overrides_win_over_the_recipe(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ("federation.rounds=1", "algorithm.name=local-only")
    text = succeed("run", "--local", recipe, *changes, "run.baselines=false", "-o", out)
    assert "local-only  round 1/1" in text
    assert json.loads((out / "config.json").read_text())["federation.rounds"] == 1
    assert "popularity" not in text


def test_central_selects_on_validation_and_shows_baselines(tmp_path: Path) -> None:
    text = succeed("central", *SETTINGS, "--rounds", 2, "--seed", 3, "--out", tmp_path / "run")
    assert "24 users in 1 clients" in text
    assert "central  round 2/2" in text
    for name in ("central (round", *BASELINES):
        assert name in text


def central_settings(recipe: Path | None, overrides: list[str], **given: int) -> Settings:
    values = load_recipe(recipe) if recipe else {}
    return parse_settings(central_flat(values, with_overrides({}, overrides), **given))


def test_central_is_one_client_with_a_shared_table() -> None:
    settings = central_settings(None, SETTINGS, seed=5, rounds=7)
    assert (settings.federation.clients, settings.federation.partition) == (1, "group")
    assert (settings.model.items, settings.algorithm.name) == ("shared", "fed-avg")
    assert (settings.run.seed, settings.federation.rounds) == (5, 7)
    kept = central_settings(None, [*SETTINGS, "run.seed=4", "federation.clients=9"])
    assert (kept.run.seed, kept.federation.rounds, kept.federation.clients) == (4, 2, 1)


def test_central_takes_the_steps_of_one_table_for_all_unless_told() -> None:
    settings = central_settings(Path("recipes/pfsr.toml"), ["model.dropout=0.1"], rounds=30)
    assert settings.train.item_learning_rate == settings.train.learning_rate == 0.002
    assert settings.model.dropout == 0.1
    same = central_settings(Path("recipes/pfsr.toml"), [], seed=1, rounds=30)
    assert same == arm_settings("central", 1, load_recipe(Path("recipes/pfsr.toml")))


def test_baselines_alone_and_together() -> None:
    text = succeed("baselines", *SETTINGS)
    for name in BASELINES:
        assert f"{name} (each client alone)" in text
        assert f"{name} (all data)" in text


def test_baselines_of_every_client_with_its_own_counts_and_with_those_of_all() -> None:
    text = succeed("baselines", *SETTINGS, "--by-client")
    alone, together = text.split("counts of all clients")
    assert "counts of each client alone: HR@10 / NDCG@10" in alone
    for part in (alone, together):
        assert all(name in part for name in BASELINES)
        assert (
            len(re.findall(r"^group-0\d +4( +(\.\d{3}|1\.000) / (\.\d{3}|1\.000)){5}$", part, re.M))
            == 6
        )
    assert alone.splitlines()[-6:] != together.splitlines()[-6:]


def test_data_clean_shows_every_market_before_and_after(tmp_path: Path) -> None:
    rows = [f"{u},{i},{i},{u[0]}" for u in ("a1", "a2", "a3", "b1", "b2") for i in "1234"]
    log = tmp_path / "log.csv"
    log.write_text("user,item,timestamp,market\n" + "\n".join(rows) + "\n")
    found = ("data", "clean", "file", "-p", log, "--column", "market")
    text = succeed(*found, "--user-core", 3, "--item-core", 3, "--out", tmp_path / "clean")
    assert re.search(r"^a  before +3 +4 +12 +0 +0\.0% +0\.0%$", text, re.M)
    assert re.search(r"^   after +3 +4 +12 +0", text, re.M)
    assert re.search(r"^   after +left out$", text, re.M)  # two users are too few for a core of 3
    assert (tmp_path / "clean/interactions.csv").is_file()
    assert "no column 'shop'" in fail("data", "clean", "file", "-p", log, "--column", "shop")


def test_data_describe_is_json() -> None:
    facts = json.loads(succeed("data", "describe", "synthetic", "--path", "users=20,items=30"))
    assert facts["users"] == 20
    assert len(facts["split_digest"]) == 64


def test_prepared_data_have_the_same_split(tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    path = "users=20,items=30,seed=4"
    text = succeed("data", "prepare", "synthetic", "--path", path, "--out", out)
    file = out / "interactions.parquet"
    assert f'data.path="{file}"' in text
    before, after = load_dataset("synthetic", path), load_dataset("file", str(file))
    assert leave_one_out(after).digest == leave_one_out(before).digest
    assert set(after.columns) == {*before.columns, "title", "text"}
    assert after.titles == before.titles
    assert {raw: set(words_of(text)) for raw, text in after.texts.items()} == {
        raw: set(words_of(text)) for raw, text in before.texts.items()
    }
    assert pq.read_table(file).num_rows == len(before)
    assert json.loads((out / "data.json").read_text())["users"] == 20
    assert not list(out.glob(".*"))


def test_fetch_reads_an_archive_that_is_there(tmp_path: Path) -> None:
    message = fail("data", "fetch", "ml-100k", "--path", tmp_path / "nothing.zip")
    assert "ml-100k is not available" in message
    assert "Fix: " in message


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("state") / "node-0.sqlite"
    NodeStore(path).install(serve())
    return path


def test_recommend(store: Path) -> None:
    _, user, _ = some_user(serve())
    text = succeed("recommend", "--state", store, "--user", user, "-k", 3)
    first, *rows = text.splitlines()
    assert first.startswith(f"user {user}, client group-00 (pfsr, round 2 of run tiny)")
    assert [row.split()[0] for row in rows] == ["1", "2", "3"]


def test_recommend_to_somebody_new(store: Path) -> None:
    known = serve().items.ids[0]
    text = succeed("recommend", "--state", store, "-u", "guest", "--items", f"{known}, nope")
    assert "skipped, not in the catalogue: nope" in text
    text = succeed("recommend", "--state", store, "-u", "guest", "--items", "")
    assert "popularity: no history yet" in text


def test_a_new_interaction_is_kept_and_a_user_can_be_forgotten(tmp_path: Path) -> None:
    served, path = serve(), tmp_path / "node.sqlite"
    NodeStore(path).install(served)
    user = some_user(served)[1]
    best = succeed("recommend", "--state", path, "-u", user, "-k", 1).splitlines()[1].split()[1]
    for words in (["--add", best], []):
        text = succeed("recommend", "--state", path, "-u", user, "-k", 40, *words)
        assert best not in [row.split()[1] for row in text.splitlines()[1:]]
    assert "lacks nope" in fail("recommend", "--state", path, "-u", user, "--add", "nope")
    both = fail("recommend", "--state", path, "-u", user, "--add", best, "--items", best)
    assert "give one of them" in both
    text = succeed("forget", "--state", tmp_path, "-u", user)
    assert text.strip() == f"user {user}: deleted from 1 served models"
    assert "is not on this node" in fail("recommend", "--state", path, "-u", user)
    assert "nothing was deleted" in fail("forget", "--state", tmp_path, "-u", user)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["run", "--local", "modl.encoder=3"], "Did you mean model.encoder"),
        (["run", "--local", "rounds"], "a setting is written key=value"),
        (["run", "--local", "run.compare=nope"], "run.compare names 'nope'"),
        (["run", "--local", "data.source=nope"], "unknown dataset 'nope'"),
        (["run", "--local", "no.toml"], "no.toml: no such file"),
        (["central", "data.path=users=x", "data.source=synthetic"], "users=x"),
        (["baselines", "federation.rounds=0"], "federation.rounds = 0 is below 1"),
        (["recommend", "--state", "no.sqlite", "-u", "1"], "no.sqlite: no such file"),
        (["report", "no-such-run"], "no-such-run is no run directory"),
        (["data", "fetch", "netflix"], "'netflix' cannot be fetched"),
        (["data", "describe", "file", "--path", "no.csv"], "no.csv"),
    ],
)
def test_a_mistake_is_one_message(
    words: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problem in fail(*words)
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_unknown_user(store: Path) -> None:
    assert "'nobody' is not on this node" in fail("recommend", "--state", store, "-u", "nobody")


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("pfsr.cli.train.compare_baselines", broken)
    assert isinstance(pfsr("baselines").exception, ValueError)


def test_doctor_here() -> None:
    result = pfsr("doctor")
    assert result.exit_code in (0, 1)
    for subject in ("python", "flwr", "torch", "CUDA", "mamba-ssm", "data ml-100k", "disk"):
        assert subject in result.stdout


@pytest.mark.parametrize(
    ("version", "loaded", "words"),
    [(None, None, "pip install ./kernels"), ("9.9", None, "not used")],
)
def test_doctor_tells_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, version: str | None, loaded: None, words: str
) -> None:
    monkeypatch.setattr(examination, "installed", lambda _name: version)
    monkeypatch.setattr(kernel_calls, "compiled", lambda: loaded)
    (finding, *_) = examination._accelerator()
    assert finding.level == "note" and words in f"{finding.found} {finding.fix}"


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "installed", lambda _name: None)
    result = pfsr("doctor")
    assert result.exit_code == 1
    assert 'get it: pip install "flwr>=1.39,<1.40"' in result.stdout
    assert "get it: pip install torch" in result.stdout
    assert "needed things are missing" in result.stdout


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("1.39.0", "ok"),
        ("1.39.7", "ok"),
        ("1.38.9", "missing"),
        ("1.40.0", "missing"),
        ("2.0.0", "missing"),
        ("strange", "missing"),
        (None, "missing"),
    ],
)
def test_doctor_keeps_to_the_pin_of_flower(version: str | None, level: str) -> None:
    assert examination.flower_finding(version).level == level


def test_the_pin_is_that_of_the_project() -> None:
    project = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    assert '"flwr>=1.39,<1.40"' in project


def test_doctor_finds_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFSR_CACHE", str(tmp_path))
    findings = {finding.subject: finding for finding in examination.examine()}
    assert findings["data ml-1m"].fix == "pfsr data fetch ml-1m"
    (tmp_path / "ml-1m").mkdir()
    (tmp_path / "ml-1m" / "ratings.dat").touch()
    findings = {finding.subject: finding for finding in examination.examine()}
    assert findings["data ml-1m"].level == "ok"


def test_the_command_at_the_head_of_the_market_recipe_runs(tmp_path: Path) -> None:
    """On markets in files of XMarket's form, which have no words."""
    rng, recipe = np.random.default_rng(0), Path("recipes/fecosr.toml")
    for market in ("ca", "uk"):
        lines = [
            f"U{user} I{item} 5.0 2016-01-{day:02d}"
            for user in range(12)
            for day, item in enumerate(rng.permutation(20)[:8].tolist(), start=1)
        ]
        text = "\n".join(["userId itemId rate date", *lines, ""])
        (tmp_path / f"{market}_5core.txt").write_text(text)
    comment = "".join(line[1:] for line in recipe.read_text().splitlines(True) if line[0] == "#")
    command = comment[comment.index("pfsr run fecosr --local") :].replace("DIR", str(tmp_path))
    words = shlex.split(command.replace("\\\n", " "))
    less = (
        "federation.rounds=1",
        "algorithm.fecosr.finetune-epochs=1",
        "model.id-dim=8",
        "run.compare=",
    )
    found = succeed(*words[1:], *less, "run.baselines=false", "--out", tmp_path / "run")
    assert re.search(r"market-uk +12 .*(local|federated)", found)
    assert "collaborative, not semantic" in found
