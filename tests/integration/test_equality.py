"""Both apps over the loopback grid equal the plain loop, tensor for tensor, for every algorithm."""

from __future__ import annotations

import pytest
import torch

from pfsr_core.assembly.registries import ALGORITHMS
from tests.integration.helpers import (
    assert_same,
    assert_same_server,
    final_server,
    plain_loop,
    settings_in,
    stored_states,
)
from tests.integration.loopback import run_loopback


@pytest.mark.parametrize("items", ["private", "dual", "semantic"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_equals_the_plain_loop(tmp_path, algorithm, items):
    settings = settings_in(tmp_path, algorithm__name=algorithm, model__items=items)
    server, states = plain_loop(settings, nodes=2)
    log, _grid = run_loopback(settings, tmp_path, nodes=2)
    assert_same_server(final_server(log, algorithm), server)
    found = stored_states(log, settings, tmp_path, nodes=2)
    assert found.keys() == states.keys()
    for client, state in states.items():
        assert_same(found[client], state)


@pytest.mark.parametrize("nodes", [1, 2, 5, 20])
def test_every_number_of_nodes_equals_the_plain_loop(tmp_path, nodes):
    settings = settings_in(
        tmp_path, federation__participation=0.5, federation__clients=20, federation__rounds=2
    )
    server, states = plain_loop(settings, nodes=nodes)
    log, _grid = run_loopback(settings, tmp_path, nodes=nodes)
    assert_same_server(final_server(log, "pfsr"), server)
    found = stored_states(log, settings, tmp_path, nodes=nodes)
    assert found.keys() == states.keys()
    for client, state in states.items():
        assert_same(found[client], state)


def test_the_number_of_nodes_changes_no_more_than_the_last_bits(tmp_path):
    settings = settings_in(tmp_path, algorithm__name="fed-avg", federation__rounds=1)
    one, _ = plain_loop(settings, nodes=1)
    for nodes in (2, 5):
        other, _ = plain_loop(settings, nodes=nodes)
        for name, tensor in one.params.items():
            torch.testing.assert_close(other.params[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__items": "shared", "algorithm__name": "fed-avg"},
        {"model__items": "shared", "algorithm__name": "fed-avg", "train__semantic_share": 0.3},
        {"algorithm__pfsr__aggregation": "count"},
        {"algorithm__server__optimizer": "momentum", "algorithm__name": "fed-avg"},
        {
            "federation__partition": "user",
            "federation__participation": 0.3,
            "model__items": "semantic",
            "train__optimizer": "sgd",
            "train__learning_rate": 0.1,
            "train__projection_learning_rate": 0.1,
            "algorithm__server__optimizer": "adam",
            "algorithm__server__learning_rate": 0.006,
            "algorithm__server__decay": 0.99,
            "algorithm__server__epsilon": 1e-6,
        },
        {"federation__partition": "user", "federation__participation": 0.3},
        {"algorithm__max_row_change": 0.2, "algorithm__name": "pfedrec"},
        {"algorithm__max_row_change": 0.004, "model__items": "dual"},
        {"federation__catalogues": "own", "model__items": "semantic"},
        {
            "model__encoder": "hstu",
            "model__compressor": "tokens",
            "model__recent": 4,
            "model__personal_memory": True,
        },
    ],
    ids=[
        "shared items",
        "soft targets",
        "count aggregation",
        "server momentum",
        "plain gradients to a server with moments",
        "a client a user",
        "clipped rows of a score function's items",
        "clipped rows of a table beside residuals",
        "catalogues",
        "tokens",
    ],
)
def test_variants_equal_the_plain_loop(tmp_path, changes):
    settings = settings_in(tmp_path, federation__rounds=2, **changes)
    server, _states = plain_loop(settings, nodes=3)
    log, _grid = run_loopback(settings, tmp_path, nodes=3)
    assert_same_server(final_server(log, settings.algorithm.name), server)


def test_same_seed_same_bytes(tmp_path):
    from tests.integration.helpers import without_times

    runs = []
    for name in ("a", "b"):
        settings = settings_in(tmp_path / name, federation__rounds=2, algorithm__finetune=True)
        log, grid = run_loopback(settings, tmp_path / name, nodes=2)
        runs.append((log.path("last/model.safetensors").read_bytes(), without_times(log)))
    assert runs[0] == runs[1]
