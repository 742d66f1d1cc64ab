"""Views and sampled-99 of a run over the loopback grid are those of the plain loop."""

from __future__ import annotations

import json

import pytest

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.data.client_dataset import SPLITS, ClientDataset
from pfsr_core.federated.algorithm import FULL, GLOBAL, WITH_PRIVATE
from pfsr_core.federated.evaluation import (
    ClientModels,
    evaluate_full,
    evaluate_models,
    split_means,
)
from pfsr_core.reports.page import write_report
from pfsr_core.reports.text_table import final_table
from pfsr_core.serving.node_store import NodeStore
from tests.integration.helpers import assert_same, plain_loop, settings_in
from tests.integration.loopback import run_loopback


def by_node(federation: FederatedDataset, nodes: int) -> list[list[ClientDataset]]:
    """The clients of each node: together with others a client's numbers round in another way."""
    ordered = sorted(federation.clients, key=lambda data: data.client)
    return [ordered[node::nodes] for node in range(nodes)]


def test_variants_and_sampled_ranks_are_those_of_the_plain_loop(tmp_path):
    settings = settings_in(
        tmp_path,
        algorithm__name="pfedrec",
        federation__partition="user",
        federation__participation=0.5,
        federation__rounds=2,
        data__sampled_99=True,
        data__protocol="paper-pfedrec",
    )
    federation = load_federation(settings)
    assembly = assemble(settings, federation.split.item_ids)
    server, states = plain_loop(settings, nodes=3)
    length = settings.model.max_length
    models = ClientModels(assembly, length, server.params, states)
    found = [one for hosted in by_node(federation, 3) for one in evaluate_models(models, hosted)]
    expected = split_means({split: [one[split] for one in found] for split in SPLITS})
    log, _grid = run_loopback(settings, tmp_path, nodes=3)
    summary = json.loads(log.path("summary.json").read_text("utf-8"))
    last = summary["methods"][0]["last"]
    assert {name: last[name] for name in expected} == pytest.approx(expected)
    names = {f"test/{way}sampled-99/ndcg@10" for way in ("", f"{GLOBAL}/", f"{WITH_PRIVATE}/")}
    assert names <= set(expected)
    assert summary["protocol"] == "paper-pfedrec"
    assert summary["split"] == federation.split.digest
    text = final_table(log.directory)
    assert "whole catalogue, protocol paper-pfedrec" in text
    for name in ("pfedrec", f"pfedrec: {GLOBAL}", f"pfedrec: {WITH_PRIVATE}"):
        assert text.count(f"{name} ") >= 2, "a row in the table, and a line of sampled-99"
    assert text.index("sampled-99") > text.index("seen items filtered")
    assert "Sampled-99, not a headline" in write_report(log.directory).read_text("utf-8")


def entry_of(log):
    """The summary's entry of the only algorithm."""
    (entry,) = json.loads(log.path("summary.json").read_text("utf-8"))["methods"]
    return entry


@pytest.mark.parametrize(("algorithm", "items"), [("fed-avg", "dual"), ("pfedrec", "shared")])
def test_full_is_measured_after_the_last_round_and_is_not_kept(tmp_path, algorithm, items):
    settings = settings_in(
        tmp_path, algorithm__name=algorithm, model__items=items, federation__rounds=2
    )
    federation = load_federation(settings)
    assembly = assemble(settings, federation.catalogue)
    server, states = plain_loop(settings, nodes=2)
    length, broadcast = settings.model.max_length, server.broadcast()
    models = ClientModels(assembly, length, server.params, states)
    found = [
        one for hosted in by_node(federation, 2) for one in evaluate_full(models, broadcast, hosted)
    ]
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    entry = entry_of(log)
    expected = split_means({split: [one[split] for one in found] for split in SPLITS})
    assert {n: entry["variants"][FULL][n] for n in expected} == pytest.approx(expected)
    assert entry["finetuned"] is None
    assert expected["test/seen-filtered/ndcg@10"] != entry["last"]["test/seen-filtered/ndcg@10"]
    assert f"{algorithm}: {FULL} (at the end)" in final_table(log.directory)
    for node in (0, 1):
        for name, client in (
            NodeStore(tmp_path / "state" / f"node-{node}.sqlite").served().clients.items()
        ):
            assert_same(client.state, states[name])


def test_with_finetuning_full_is_the_finetuned_model(tmp_path):
    changes = {"algorithm__name": "fed-avg", "model__items": "dual", "federation__rounds": 1}
    settings = settings_in(tmp_path, **{**changes, "algorithm__finetune": True})
    entry = entry_of(run_loopback(settings, tmp_path, nodes=2)[0])
    assert entry["variants"][FULL] == entry["finetuned"]


@pytest.mark.parametrize(
    "changes",
    [{"model__items": "private"}, {"model__items": "dual", "run__evaluate_clients": "asked"}],
    ids=["one view", "a sample is evaluated"],
)
def test_no_client_trains_for_full_where_it_says_nothing_or_costs_too_much(tmp_path, changes):
    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1, **changes)
    assert entry_of(run_loopback(settings, tmp_path, nodes=1)[0])["variants"] == {}
