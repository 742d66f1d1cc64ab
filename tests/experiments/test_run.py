"""The ablation: every arm is a valid setting, and a record says what its run found."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import run
from experiments.arms.histories import KINDS
from experiments.record_files import RecordKey
from experiments.records import RecordStore
from experiments.run import ARMS, arm_settings, recipe_of, run_arm, run_baselines
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.evaluation.ranking import per_user
from pfsr_core.settings.fields import Value
from pfsr_core.settings.recipes import load_recipe
from tests.helpers.tiny import tiny_settings

ROOT = Path(__file__).parents[2]
RECIPE = load_recipe(ROOT / "recipes" / "pfsr.toml")


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_a_valid_setting_of_the_recipe(arm: str) -> None:
    settings = arm_settings(arm, 7, load_recipe(ROOT / recipe_of(arm)))
    assert settings.run.seed == 7
    assert algorithm_names(settings)[0] == settings.algorithm.name
    assert arm == "pfsr" or settings != arm_settings("pfsr", 7, RECIPE)


def test_file_names_are_distinct_and_plain() -> None:
    names = {RecordKey("main", arm, seed).file_name for arm in ARMS for seed in (0, 1)}
    assert len(names) == 2 * len(ARMS)
    assert not any(character in name for name in names for character in " /,")


def test_the_record_is_the_round_that_validation_chose() -> None:
    record = run_arm(tiny_settings(federation__rounds=4), every=1)
    chosen = max(record["history"], key=lambda line: line["valid"])
    assert record["round"] == chosen["round"] and record["test"] == chosen["test"]
    values = per_user(np.array(list(record["ranks"].values())), "ndcg@10")
    assert values.mean() == pytest.approx(record["test_means"]["excluded/ndcg@10"])
    assert record["ranks"].keys() == record["lengths"].keys()


@pytest.mark.parametrize("name", ["pfsr", "fed-avg"])
def test_an_item_mode_is_recorded_with_its_views_and_its_cold_targets(name: str) -> None:
    changes: dict[str, Value] = {"algorithm__name": name, "federation__rounds": 2}
    record = run_arm(tiny_settings(model__items="semantic", **changes), every=1)
    assert list(record["views"]) == ["global", "global+private", "full"]
    assert record["bytes_up_per_client"] == record["bytes_down_per_client"] > 0
    for one in (record, *record["views"].values()):
        parts = one["test_by_target"]
        users = sum(part["users"] for part in parts.values())
        total = sum(part["users"] * part["excluded/ndcg@10"] for part in parts.values())
        assert (users, total / users) == (24, pytest.approx(one["test"]))
    with_private = record["views"]["global+private"]
    assert (with_private["test"] == record["test"]) or name == "pfsr"
    assert run_arm(tiny_settings(**changes), every=1)["views"] == {}


def test_baselines_are_records_of_the_same_users() -> None:
    settings = tiny_settings()
    users = run_arm(tiny_settings(federation__rounds=1), every=1)["ranks"].keys()
    assert all(one["ranks"].keys() == users for one in run_baselines(settings).values())


def test_what_is_recorded_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where workers fail, or the parent is interrupted before it has folded their records."""
    launched: list[tuple[str, int]] = []
    fails = {("fed-avg", 1)}

    def work(command: list[str], check: bool) -> SimpleNamespace:
        options = command[command.index("--worker") :]
        job = options[options.index("--arms") + 1], int(options[options.index("--seeds") + 1])
        launched.append(job)
        if job in fails:
            return SimpleNamespace(returncode=3)
        assert run.main(options) == 0
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=work))
    monkeypatch.setattr(run, "run_arm", lambda settings, every: {"ranks": {"u": every}})
    words = ["--arms", "pfsr", "fed-avg", "--seeds", "0", "1", "--jobs", "2", "--every", "4"]
    words += ["--recipe", str(ROOT / "recipes" / "pfsr.toml"), "--records", str(tmp_path)]
    words += ["--collection", "other", "--set", "data.path=/of/one/machine", "train.batch-size=8"]
    store = RecordStore(tmp_path, "other")
    store.append({"arm": "pfsr", "seed": 1, "ranks": {"u": 9}})  # of an interrupted run
    assert run.main(words) == 3
    assert sorted(launched) == [("fed-avg", 0), ("fed-avg", 1), ("pfsr", 0)]
    assert store.keys() == {("fed-avg", 0), ("pfsr", 0), ("pfsr", 1)} and store.merge() == 0
    fails.clear()
    launched.clear()
    assert run.main(words) == 0 and launched == [("fed-avg", 1)]
    assert store.get("fed-avg", 1)["ranks"] == {"u": 4}
    assert store.get("fed-avg", 1)["set"] == ["train.batch-size=8"]
    assert store.get("pfsr", 1)["ranks"] == {"u": 9}


WITH_VIEWS = ["global", "global+private", "full"]


@pytest.mark.parametrize("kind", ["sasrec with tokens of its own", "associative state"])
def test_a_compressed_history_is_recorded(kind: str) -> None:
    named = {key.replace(".", "__").replace("-", "_"): value for key, value in KINDS[kind].items()}
    changes = {**named, "model__max_length": 8, "model__recent": 4, "algorithm__name": "fed-avg"}
    record = run_arm(tiny_settings(**changes, federation__rounds=1), every=1)
    assert record["ranks"].keys() == record["lengths"].keys()
    assert list(record["views"]) == (WITH_VIEWS if "own" in kind else [])
