"""A run without Flower: its files agree with each other and with the evaluation itself."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import parse_settings
from pfsr_core.evaluation.baselines import BASELINES
from pfsr_core.federated.evaluation import ClientModels, evaluate_clients, split_means
from pfsr_core.federated.simulation import finetune_clients, run
from pfsr_core.params import shapes_of, size_of
from pfsr_core.reports.queries import main_algorithm
from pfsr_core.runs.files import CENTRAL, SELECTED_BY, new_directories
from pfsr_core.runs.local import central_values, simulate
from pfsr_core.runs.local_evaluation import evaluate_baselines
from pfsr_core.runs.model_files import MODEL_DIRECTORY, load_model
from pfsr_core.runs.reading import read_run
from pfsr_core.runs.results import Json, client_columns
from pfsr_core.settings.fields import SettingsError
from tests.helpers.runs import write_run
from tests.helpers.tiny import TINY, tiny_settings, tiny_world


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    told = write_run(path)
    assert len(told) == 9
    assert told[0].startswith("pfsr  round 1/3  loss ")
    return path


def lines(directory: Path, algorithm: str) -> list[dict[str, object]]:
    text = (directory / "metrics.jsonl").read_text("utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    return [line for line in found if line["algorithm"] == algorithm]


def summary(directory: Path) -> dict[str, dict[str, object]]:
    content = json.loads((directory / "summary.json").read_text("utf-8"))
    return {row["method"]: row for row in content["methods"]}


def test_every_method_has_a_row(directory: Path) -> None:
    assert list(summary(directory)) == ["pfsr", "fed-avg", "local-only", *BASELINES]


def test_the_best_round_is_the_validation_best(directory: Path) -> None:
    for name in ("pfsr", "fed-avg", "local-only"):
        rounds, row = lines(directory, name), summary(directory)[name]
        best = max(rounds, key=lambda line: line[SELECTED_BY])
        assert row["best_round"] == best["round"]
        assert row["best"] == {k: best[k] for k in best if k.startswith(("valid/", "test/"))}
        assert row["rounds"] == len(rounds) == 3


def test_figures_are_those_of_the_reference_loop(directory: Path) -> None:
    settings, federation, assembly = tiny_world(run__compare="fed-avg local-only")
    server, states = run(assembly.algorithm, federation.clients, rounds=3, seed=0)
    scorers = ClientModels(assembly, settings.model.max_length, server.params, states).scorer_of
    found = {"test": evaluate_clients(scorers, federation.clients, "test")}
    expected = split_means(found)
    last = summary(directory)["pfsr"]["last"]
    assert {key: last[key] for key in expected} == expected


@pytest.mark.parametrize("finetune", [False, True])
def test_full_is_the_model_that_finetuning_makes(tmp_path: Path, finetune: bool) -> None:
    changes = {"model__items": "dual", "algorithm__name": "fed-avg", "run__compare": ""}
    write_run(tmp_path / "run", run__baselines=False, algorithm__finetune=finetune, **changes)
    settings, federation, assembly = tiny_world(**changes)
    server, states = run(assembly.algorithm, federation.clients, rounds=3, seed=0)
    after = finetune_clients(assembly.algorithm, server.broadcast(), states, federation.clients)
    scorers = ClientModels(assembly, settings.model.max_length, server.params, after).scorer_of
    expected = split_means({"test": evaluate_clients(scorers, federation.clients, "test")})
    row = summary(tmp_path / "run")["fed-avg"]
    assert {key: row["variants"]["full"][key] for key in expected} == pytest.approx(expected)
    assert (row["finetuned"] is not None) == finetune


def test_rounds_between_evaluations_have_no_figures(tmp_path: Path) -> None:
    told = write_run(tmp_path / "run", run__evaluate_every=2, run__compare="", run__baselines=False)
    figures = [SELECTED_BY in line for line in lines(tmp_path / "run", "pfsr")]
    assert figures == [False, True, True]  # every second one, and the last
    assert ["NDCG@10" in line for line in told] == figures


def test_bytes_are_the_shared_values(directory: Path) -> None:
    _, _, assembly = tiny_world()
    values = size_of(shapes_of(assembly.task.init_shared()))
    row = summary(directory)["fed-avg"]
    assert row["bytes_up"] == row["bytes_down"] == 3 * 6 * 4 * values
    assert summary(directory)["local-only"]["bytes_up"] == 0


def test_client_sums_add_up_to_the_means(directory: Path) -> None:
    with (directory / "clients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == client_columns()
    for name, row in summary(directory).items():
        mine = [r for r in rows if r["method"] == name and r["split"] == "test"]
        assert sum(int(r["users"]) for r in mine) == 24
        figures = row["finetuned"] or row["last"]
        expected = figures["test/seen-filtered/ndcg@10"] * 24
        assert sum(float(r["ndcg@10_sum"]) for r in mine) == pytest.approx(expected)
        covered = figures["test/covered"] * 24
        assert sum(int(r["covered"]) for r in mine) == pytest.approx(covered)


def test_kept_shares_are_those_of_the_mask(directory: Path) -> None:
    first, *others = lines(directory, "pfsr")
    assert not any(first["mask-ratio"].values())
    for line in others:
        shares: dict[str, float] = line["mask-ratio"]
        assert all(0 <= share <= 0.25 for share in shares.values())
        assert shares[""] > 0.2, "the whole encoder: nearly a quarter"


def test_main_algorithm_comes_first_and_once() -> None:
    settings = tiny_settings(run__compare="local-only pfsr, local-only")
    assert algorithm_names(settings) == ["pfsr", "local-only"]


def test_unknown_algorithm_to_compare() -> None:
    with pytest.raises(SettingsError, match="'fedavg'. Choose among: pfsr, fed-avg"):
        algorithm_names(tiny_settings(run__compare="fedavg"))


def test_a_new_directory_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFSR_HOME", str(tmp_path))
    first, second, *_ = new_directories(tiny_settings().run)
    assert first.parent == second.parent == tmp_path / "runs"
    assert first.name.startswith("pfsr-20")
    assert second.name == f"{first.name}-2"
    named = tiny_settings(run__directory=str(tmp_path / "elsewhere"), run__name="mine")
    first = next(new_directories(named.run))
    assert first.parent == tmp_path / "elsewhere"
    assert first.name.startswith("mine-")
    assert list(tmp_path.iterdir()) == []


def test_pooled_baselines_of_one_client_are_its_own() -> None:
    _, alone, _ = tiny_world(federation__clients=1)
    _, several, _ = tiny_world(federation__catalogues="own")
    assert figures(evaluate_baselines(alone)) == figures(evaluate_baselines(alone, pooled=True))
    assert figures(evaluate_baselines(several)) != figures(evaluate_baselines(several, pooled=True))


def figures(rows: tuple[list[Json], list[Json]]) -> list[tuple[str, float]]:
    return [(row["client"] + row["method"], row["ndcg@10_sum"]) for row in rows[1]]


def test_central_training_is_a_run_with_its_own_name(tmp_path: Path) -> None:
    settings = parse_settings(central_values({**TINY, "run.baselines": False}))
    told: list[str] = []
    simulate(settings, load_federation(settings), tmp_path / "run", told.append, CENTRAL)
    assert all(line.startswith("central  round ") for line in told)
    (entry,) = summary(tmp_path / "run").values()
    assert (entry["method"], entry["bytes_down"], entry["bytes_up"]) == ("central", 0, 0)
    assert main_algorithm(read_run(tmp_path / "run")) == "central"
    assert load_model(tmp_path / "run" / MODEL_DIRECTORY).origin.algorithm == "fed-avg"


def test_a_run_of_an_earlier_version_is_read_with_the_names_of_today(directory: Path) -> None:
    old = directory.parent / "old"
    shutil.copytree(directory, old)
    renamed = {"seen-filtered": "excluded", "seen-included": "kept", "mask-ratio": "kept"}
    for name in ("summary.json", "metrics.jsonl", "baselines.json"):
        text = (old / name).read_text("utf-8").replace('"variants"', '"views"')
        for new, before in renamed.items():
            text = text.replace(new, before)
        (old / name).write_text(text, "utf-8")
    before, today = read_run(old), read_run(directory)
    assert before.rounds == today.rounds
    assert before.summary == today.summary
    assert before.baselines == today.baselines
