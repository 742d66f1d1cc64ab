"""Views and sampled-99 of a run over the loopback grid are those of the plain loop."""

from __future__ import annotations

import json

import pytest

from pfsr_core.assembly import assemble, load_federation
from pfsr_core.data.client_dataset import SPLITS
from pfsr_core.federated import GLOBAL, WITH_PRIVATE
from pfsr_core.final_table import final_table
from pfsr_core.personal_evaluation import evaluate_models, split_means
from pfsr_core.report import write_report
from tests.integration.helpers import plain_loop, settings_in
from tests.integration.loopback import run_loopback


def test_views_and_sampled_ranks_are_those_of_the_plain_loop(tmp_path):
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
    found = evaluate_models(assembly, length, server.params, states, federation.clients)
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
    assert text.index("sampled-99") > text.index("history excluded")
    assert "Sampled-99, not a headline" in write_report(log.directory).read_text("utf-8")
