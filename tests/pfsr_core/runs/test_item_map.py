"""Item map: what moved is what the client trained, axes are true, and pictures stay at home."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfsr_core.federated.simulation import run
from pfsr_core.models.parameter_names import ITEMS, RESIDUAL
from pfsr_core.reports.node_item_map import add_item_map, stored_item_map
from pfsr_core.reports.page import write_report
from pfsr_core.runs.files import ITEM_MAP
from pfsr_core.runs.item_map import (
    ItemMapError,
    item_map,
    near_share,
    read_item_maps,
    typical_clients,
    typical_item_maps,
)
from pfsr_core.runs.reading import read_run
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.served_model import RecommendationError
from pfsr_core.serving.store_files import forget_everywhere
from pfsr_core.settings.fields import Value
from tests.helpers.command_line import fail, succeed
from tests.helpers.runs import write_run
from tests.helpers.tiny import tiny_world
from tests.pfsr_core.serving.test_recommend import serve

SECTION = "What personalization does to the items"
DUAL = [
    *((name, mode) for name in ("fed-avg", "pfsr") for mode in ("dual", "semantic")),
    ("pfedrec", "shared"),
]


@pytest.mark.parametrize(("name", "mode"), DUAL)
def test_own_items_move_and_of_the_others_only_what_was_trained(name: str, mode: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=mode)
    server, states = run(assembly.algorithm, federation.clients, rounds=2, seed=0)
    data = federation.clients[0]
    found = item_map(assembly, server.params, states[data.client], data)
    assert found.trained == len(data.touched) == sum(found.own)
    assert len(found.own) == len(found.before) == len(found.after) == data.num_items
    assert found.moved_own > 0
    assert found.moved_others == 0 or name == "pfedrec", "its negatives move"
    moved = ~np.isclose(np.array(found.before), np.array(found.after), atol=1e-3).all(1)
    assert name == "pfedrec" or not (moved & ~np.array(found.own)).any()


@pytest.mark.parametrize(("name", "mode"), DUAL)
def test_of_a_client_with_a_catalogue_of_its_own_what_it_sells_is_shown(
    name: str, mode: str
) -> None:
    _, federation, assembly = tiny_world(
        algorithm__name=name, model__items=mode, federation__catalogues="own"
    )
    server, states = run(assembly.algorithm, federation.clients, rounds=1, seed=0)
    data = min(federation.clients, key=lambda one: one.catalogue_size)
    assert data.catalogue_size < data.num_items
    found = item_map(assembly, server.params, states[data.client], data)
    sold = [int(code) in data.touched for code in data.rankable_items]
    assert found.own == sold and len(found.before) == data.catalogue_size
    moved = ~np.isclose(np.array(found.before), np.array(found.after), atol=1e-3).all(1)
    assert moved.any() and (name == "pfedrec" or not (moved & ~np.array(found.own)).any())


def test_the_picture_of_a_residual_by_hand() -> None:
    """Own items go 3 along one coordinate: 3 to the right in the picture, and nothing else."""
    _, federation, assembly = tiny_world(algorithm__name="fed-avg", model__items="dual")
    data, shared = federation.clients[0], assembly.algorithm.server.init().params
    residual = torch.zeros(len(data.touched) + 1, 8)
    residual[1:, 5] = -3.0
    found = item_map(assembly, shared, {RESIDUAL: residual}, data)
    moves = np.array(found.after) - np.array(found.before)
    own = np.array(found.own)
    assert moves[own] == pytest.approx(np.tile([3.0, 0.0], (own.sum(), 1)), abs=1e-3)
    assert moves[~own] == pytest.approx(0.0, abs=1e-3)
    lengths = torch.linalg.vector_norm(shared[ITEMS][1:], dim=1)
    assert found.moved_own == pytest.approx(3.0 / float(lengths.mean()), rel=1e-5)
    assert np.array(found.before)[:, 0] == pytest.approx(-shared[ITEMS][1:, 5].numpy(), abs=1e-3)


def test_near_on_a_line() -> None:
    line = torch.arange(30.0)[:, None]
    own = np.zeros(30, np.bool_)
    own[:11] = True
    assert near_share(line[:, [0, 0]], np.ones(30, np.bool_)) == 1.0
    assert near_share(line, own) == pytest.approx((6 * 10 + 9 + 8 + 7 + 6 + 5) / 110, abs=0.01)
    alone = np.zeros(30, np.bool_)
    alone[3] = True
    assert near_share(line, alone) == 0.0


def test_the_largest_the_median_and_the_smallest() -> None:
    assert typical_clients({"a": 3, "b": 9, "c": 1, "d": 9, "e": 5}) == ["b", "e", "c"]
    assert typical_clients({"a": 3, "b": 2}) == ["a", "b"]
    assert typical_clients({"a": 3}) == ["a"]
    assert typical_clients({}) == []


def test_a_model_with_one_view_has_nothing_to_show() -> None:
    _, federation, assembly = tiny_world(algorithm__name="fed-avg")
    data, shared = federation.clients[0], assembly.algorithm.server.init().params
    state = assembly.algorithm.client.init(data)
    with pytest.raises(ItemMapError, match="model.items = 'dual'"):
        item_map(assembly, shared, state, data)
    assert typical_item_maps(assembly, shared, {data.client: state}, [data]) == []


@pytest.mark.parametrize("mode", ["private", "shared"])
def test_private_rows_of_users_are_no_view_of_items(mode: str, tmp_path: Path) -> None:
    """A run with such rows ends with a report all the same, private tables included."""
    changes: dict[str, Value] = {"model__encoder": "sasrec", "model__compressor": "tokens"}
    changes |= {"model__recent": 4, "model__personal_memory": True, "model__items": mode}
    assert tiny_world(**changes)[2].algorithm.personalization.variants
    write_run(tmp_path / "run", **changes, run__compare="", federation__rounds=1)
    assert not (tmp_path / "run" / ITEM_MAP).exists()
    assert SECTION not in write_report(tmp_path / "run").read_text("utf-8")


def test_a_plain_run_shows_its_items_and_reads_them_back(tmp_path: Path) -> None:
    write_run(tmp_path / "dual", model__items="dual", run__compare="fed-avg")
    views = read_item_maps(read_run(tmp_path / "dual"))
    assert len(views) == 3
    assert views[0].trained > views[2].trained
    page = write_report(tmp_path / "dual").read_text("utf-8")
    assert page.count(SECTION) == 1
    assert page.count("<svg") == 6
    write_run(tmp_path / "private", run__compare="")
    assert not (tmp_path / "private" / ITEM_MAP).exists()
    assert SECTION not in write_report(tmp_path / "private").read_text("utf-8")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two nodes with three clients each, and one that never finished a run."""
    place = tmp_path_factory.mktemp("state")
    served = serve(algorithm__name="fed-avg", model__items="semantic")
    names = list(served.clients)
    for node in (0, 1):
        part = replace(served, clients={name: served.clients[name] for name in names[node::2]})
        NodeStore(place / f"node-{node}.sqlite").install(part)
    NodeStore(place / "node-2.sqlite").secret()
    return place


def test_a_node_draws_what_a_simulation_draws(stores: Path) -> None:
    changes: dict[str, Value] = {"algorithm__name": "fed-avg", "model__items": "semantic"}
    _, federation, assembly = tiny_world(**changes)
    server, states = run(assembly.algorithm, federation.clients, rounds=2, seed=0)
    expected = typical_item_maps(assembly, server.params, states, federation.clients)
    assert stored_item_map(stores) == expected
    one = stored_item_map(stores / "node-1.sqlite", client_names=["group-01"])
    assert [views.client for views in one] == ["group-01"]
    assert stored_item_map(stores / "node-0.sqlite")[0].client != "group-01"


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_command_writes_a_picture_and_says_what_it_shows(
    stores: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / f"views.{kind}"
    store = stores / "node-0.sqlite"
    text = succeed("item-map", "--state", store, "--client", "group-00", "--out", out)
    assert "group-00: own items moved" in text
    assert f"picture: {out}" in text
    beginning = {"png": b"\x89PNG", "svg": b"<?xml"}[kind]
    assert out.read_bytes().startswith(beginning)


def test_a_wrong_client_and_a_wrong_run_say_what_to_do(stores: Path, tmp_path: Path) -> None:
    message = fail("item-map", "--state", stores, "--client", "nobody", "--out", tmp_path / "x")
    assert "choose one of group-00" in message
    message = fail("item-map", "--state", stores, "--out", tmp_path / "views.doc")
    assert "give it one of .png, .svg, .pdf" in message
    assert "serves no model of run 'other'" in fail("item-map", "--state", stores, "--run", "other")


def test_where_everybody_was_forgotten_there_is_nothing_to_draw(tmp_path: Path) -> None:
    served = serve(federation__clients=1, algorithm__name="fed-avg", model__items="dual")
    NodeStore(tmp_path / "node-0.sqlite").install(served)
    for user in served.clients["group-00"].histories:
        forget_everywhere(tmp_path, user)
    message = fail("item-map", "--state", tmp_path, "--out", tmp_path / "views.png")
    assert "no client with users" in message


def test_the_report_of_a_simulation_gets_the_picture_from_its_own_stores(
    stores: Path, tmp_path: Path
) -> None:
    write_run(tmp_path / "tiny", run__compare="")
    assert add_item_map(tmp_path / "tiny", stores)
    assert SECTION in (tmp_path / "tiny" / "report.html").read_text("utf-8")
    write_run(tmp_path / "another", run__compare="")
    with pytest.raises(Exception, match="serves no model of run 'another'"):
        add_item_map(tmp_path / "another", stores)


def test_a_simulation_with_private_tables_gets_none(tmp_path: Path) -> None:
    NodeStore(tmp_path / "state" / "node-0.sqlite").install(serve())
    write_run(tmp_path / "tiny", run__compare="")
    assert not add_item_map(tmp_path / "tiny", tmp_path / "state")
    with pytest.raises(RecommendationError, match="no node's store"):
        add_item_map(tmp_path / "tiny", tmp_path)
