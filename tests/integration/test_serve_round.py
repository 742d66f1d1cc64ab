"""The best round is finetuned and served where that is asked for, as without Flower."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import Settings
from pfsr_core.federated.simulation import finetune_clients, run
from pfsr_core.params import Params
from pfsr_core.runs.files import SELECTORS
from pfsr_core.runs.local import simulate
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.recommend import recommend
from server_app.run_log import RunLog
from tests.integration.helpers import assert_same, settings_in
from tests.integration.loopback import run_loopback

MARKETS = {
    "data__path": "users=36,items=40,seed=3,mean_length=12,markets=3",
    "federation__partition": "column",
    "federation__column": "market",
    "federation__rounds": 6,
    "train__learning_rate": 0.1,
    "train__projection_learning_rate": 0.1,
    "algorithm__finetune": True,
    "train__engine": "loop",  # nodes group other clients together
    "run__selected_by": "clients",
    "run__serve_round": "best",
}


def served(log: RunLog, directory, nodes: int) -> tuple[Params, dict[str, Params], int]:
    stores = [NodeStore(directory / "state" / f"node-{p}.sqlite").served() for p in range(nodes)]
    states = {name: part.state for one in stores for name, part in one.clients.items()}
    return dict(stores[0].shared), states, stores[0].round


def entry(directory) -> dict[str, object]:
    return json.loads((directory / "summary.json").read_text("utf-8"))["methods"][0]


def best_of_the_plain_loop(settings: Settings, round_: int) -> tuple[Params, dict[str, Params]]:
    """The shared model of ``round_``, and states finetuned from it after the last round."""
    federation = load_federation(settings)
    algorithm = assemble(settings, federation.catalogue).algorithm
    clients = sorted(federation.clients, key=lambda data: data.client)
    servers = {}
    options = {"rounds": settings.federation.rounds, "seed": settings.run.seed, "nodes": 2}
    on_round = lambda report: servers.update({report.server.round: report.server})  # noqa: E731
    _, states = run(algorithm, clients, on_round=on_round, **options)
    broadcast = servers[round_].broadcast()
    return dict(broadcast.params), finetune_clients(algorithm, broadcast, states, clients)


@pytest.mark.parametrize("algorithm", ["fecosr", "fed-avg"])
def test_the_best_round_is_served(tmp_path, algorithm):
    changes = {**MARKETS, "algorithm__name": algorithm, "model__items": "shared"}
    settings = settings_in(tmp_path, **changes)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    found = entry(log.directory)
    lines = [json.loads(line) for line in log.path("metrics.jsonl").read_text().splitlines()]
    best = max(lines[1:], key=lambda line: line[SELECTORS["clients"]])
    rounds = settings.federation.rounds
    assert found["best_round"] == found["served_round"] == best["round"]
    assert len(lines) == rounds + 1 and len({line["train-loss"] for line in lines[1:]}) == rounds
    shared, states, round_ = served(log, tmp_path, nodes=2)
    expected, expected_states = best_of_the_plain_loop(settings, round_)
    assert round_ == best["round"]
    assert_same(shared, expected)
    for client, state in expected_states.items():
        assert_same(states[client], state)


def test_its_figures_are_those_without_flower(tmp_path):
    settings = settings_in(tmp_path, **MARKETS, algorithm__name="fecosr")
    log, _grid = run_loopback(settings, tmp_path, nodes=1)
    told: list[str] = []
    simulate(settings, load_federation(settings), tmp_path / "plain", told.append)
    found, expected = entry(log.directory), entry(tmp_path / "plain")
    for part in ("best", "last", "finetuned"):
        of_both = {key: value for key, value in found[part].items() if key in expected[part]}
        assert of_both == pytest.approx(expected[part])
    for part in ("outcome", "served_round", "best_round"):
        assert found[part] == expected[part]
    assert 0 <= found["outcome"]["shipped-federated"] <= 3
    store = NodeStore(tmp_path / "state" / "node-0.sqlite")
    assert len(recommend(store.served(), "user-1", k=5).recommendations) == 5


@pytest.fixture
def first_is_best(monkeypatch):
    """Rounds are selected by a figure that surely falls: their training loss."""
    monkeypatch.setitem(SELECTORS, "clients", "train-loss")
    return {"train__learning_rate": 0.01, "train__projection_learning_rate": 0.01}


def test_a_round_before_the_last_is_served(tmp_path, first_is_best):
    changes = {**MARKETS, **first_is_best, "federation__rounds": 3, "model__items": "shared"}
    settings = settings_in(tmp_path, **changes, algorithm__name="fed-avg")
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    found = entry(log.directory)
    assert (found["best_round"], found["served_round"], found["rounds"]) == (1, 1, 3)
    shared, states, round_ = served(log, tmp_path, nodes=2)
    expected, expected_states = best_of_the_plain_loop(settings, 1)
    assert round_ == 1
    assert_same(shared, expected)
    for client, state in expected_states.items():
        assert_same(states[client], state)


def test_a_resumed_run_serves_it_too(tmp_path, first_is_best):
    """The best round may lie before the break: its model is in the checkpoint."""
    changes = {**MARKETS, **first_is_best, "federation__rounds": 3}
    settings = settings_in(tmp_path, **changes, algorithm__name="fecosr")
    log, _grid = run_loopback(settings, tmp_path / "a", nodes=1)
    whole = served(log, tmp_path / "a", nodes=1)
    federation = settings.federation
    half = replace(settings, federation=replace(federation, rounds=federation.rounds - 1))
    log, _grid = run_loopback(half, tmp_path / "b", nodes=1)
    log.path("checkpoint-fecosr/result.json").unlink()
    resumed = replace(settings, run=replace(settings.run, resume=log.run_id))
    log, _grid = run_loopback(resumed, tmp_path / "b", nodes=1)
    again = served(log, tmp_path / "b", nodes=1)
    assert again[2] == whole[2] == 1
    assert_same(again[0], whole[0])


def test_where_private_states_belong_to_a_round_the_last_one_is_served(tmp_path):
    settings = settings_in(tmp_path, **{**MARKETS, "federation__rounds": 3})
    log, _grid = run_loopback(settings, tmp_path, nodes=1)
    assert entry(log.directory)["served_round"] == 3
    assert served(log, tmp_path, nodes=1)[2] == 3
