"""Clients that sell different items: nobody ranks, trains against or recommends what is foreign."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from client_app.hosted_node import make_node
from pfsr_core.assembly.assemble import local_training
from pfsr_core.assembly.data import FederatedDataset, load_federation
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import SPLITS, ClientDataset
from pfsr_core.data.negatives import training_pairs
from pfsr_core.evaluation.baselines import BASELINES, popularity
from pfsr_core.evaluation.client import evaluate_client
from pfsr_core.evaluation.scoring import effective_model, make_scorer
from pfsr_core.federated.algorithm import Broadcast
from pfsr_core.federated.evaluation import ClientModels, evaluate_models
from pfsr_core.federated.model import Assembly
from pfsr_core.federated.simulation import States, run
from pfsr_core.items.modes import ITEM_MODES
from pfsr_core.items.tables import TABLE_ROWS
from pfsr_core.models.parameter_names import ITEMS
from pfsr_core.params import Params
from pfsr_core.serving.recommend import recommend
from pfsr_core.settings.fields import SettingsError, Value
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.loop import train
from pfsr_core.training.task import client_item_index
from tests.helpers.float64 import double
from tests.helpers.tiny import OWN_MODEL, tiny_world
from tests.pfsr_core.serving.test_recommend import serve

OWN: dict[str, Value] = {
    "federation__catalogues": "own",
    "data__path": "users=24,items=80,seed=3,mean_length=8",
}
SYSTEMS = [
    (items, name)
    for items, name in product(ITEM_MODES, ALGORITHMS)
    if name != "pfedrec" or items == "shared"
]


def own_world(items: str = "shared", name: str = "fed-avg", **changes: Value):
    """Six clients, each with the items of its own four users."""
    chosen: dict[str, Value] = {"model__items": items, "algorithm__name": name}
    if name == "pfedrec":
        del chosen["model__items"]
    return tiny_world(**OWN, **chosen, **changes)


def trained(
    world: tuple[Settings, FederatedDataset, Assembly], rounds: int = 2
) -> tuple[Params, States, list[ClientDataset]]:
    _, federation, assembly = world
    server, states = run(assembly.algorithm, federation.clients, rounds=rounds, seed=0)
    return server.params, states, list(federation.clients)


def test_a_catalogue_is_what_the_clients_own_log_holds() -> None:
    _, federation, _ = own_world()
    for data in federation.clients:
        items = {int(code) for user in data.users for code in user.all_items}
        assert data.rankable_items.tolist() == sorted(items)
        assert data.catalogue_size == len(items) < data.num_items
    _, common, _ = tiny_world()
    assert common.clients[0].rankable_items.tolist() == list(
        range(1, common.clients[0].num_items + 1)
    )


@pytest.mark.parametrize("items", ITEM_MODES)
def test_a_table_has_the_rows_of_the_catalogue(items: str) -> None:
    _, federation, assembly = own_world(items)
    data = federation.clients[0]
    params = {**assembly.task.partition.init_shared(), **assembly.task.partition.init_private(data)}
    sold = data.touched if items == "private" else data.rankable_items
    rows = client_item_index(assembly.task, data)[TABLE_ROWS]
    assert rows.tolist() == [0, *sold]
    table = effective_model(assembly.task, params, data)[ITEMS]
    everything = replace(data, own_catalogue=None)
    whole = effective_model(assembly.task, params, everything)[ITEMS]
    expected = whole if items == "private" else whole[rows]
    torch.testing.assert_close(table, expected)


@pytest.mark.parametrize("items", ITEM_MODES)
def test_selling_everything_is_the_same_as_a_common_catalogue(items: str) -> None:
    _, federation, assembly = tiny_world(model__items=items, algorithm__name="fed-avg")
    everything = np.arange(1, len(federation.split.item_ids) + 1)
    named = [replace(data, own_catalogue=everything) for data in federation.clients]
    server, states = run(assembly.algorithm, federation.clients, rounds=2, seed=0)
    other, others = run(assembly.algorithm, named, rounds=2, seed=0)
    for name, tensor in server.params.items():
        assert torch.equal(tensor, other.params[name])
    for client, state in states.items():
        assert all(torch.equal(tensor, others[client][name]) for name, tensor in state.items())
    models = ClientModels(assembly, 10, server.params, states)
    found = evaluate_models(models, named)
    expected = evaluate_models(models, federation.clients)
    for one, two in zip(found, expected, strict=True):
        assert all(one[split].sums() == two[split].sums() for split in SPLITS)


@pytest.mark.parametrize(("items", "name"), SYSTEMS)
def test_foreign_items_are_never_scored(items: str, name: str) -> None:
    world = own_world(items, name)
    shared, states, clients = trained(world, rounds=1)
    settings, _, assembly = world
    for data in clients:
        model = assembly.algorithm.personalization.model(shared, states[data.client])
        score = make_scorer(assembly.task, model, data, settings.model.max_length)
        scores = score([user.history("test") for user in data.users])
        ranked = torch.isfinite(scores).any(0).nonzero()[:, 0].numpy()
        assert np.isin(ranked, data.rankable_items).all() and len(ranked)


@pytest.mark.parametrize("negatives", [0, 3])
def test_training_moves_no_row_of_a_foreign_item(negatives: int) -> None:
    world = own_world(train__negatives=negatives)
    _, federation, assembly = world
    data = federation.clients[0]
    before = assembly.task.partition.init_shared()
    job = Job({**before, **assembly.task.partition.init_private(data)}, data, stream=1)
    after, losses = train(assembly.task, training_of(world), job)
    moved = (after[ITEMS] != before[ITEMS]).any(1).nonzero()[:, 0].numpy()
    assert np.isin(moved, data.rankable_items).all() and len(moved)
    assert losses.count


def test_a_uniform_guess_costs_the_log_of_the_catalogue() -> None:
    """Cross-entropy over the catalogue alone: with equal rows it is log V'."""
    world = own_world()
    _, federation, assembly = world
    data = federation.clients[0]
    params = {**assembly.task.partition.init_shared(), **assembly.task.partition.init_private(data)}
    params[ITEMS] = torch.zeros_like(params[ITEMS])
    frozen = training_of(world).with_settings(learning_rate=0.0, item_learning_rate=0.0)
    _, losses = train(assembly.task, frozen, Job(params, data, stream=1))
    assert losses.total / losses.count == pytest.approx(np.log(data.catalogue_size), rel=1e-5)


def training_of(world: tuple[Settings, FederatedDataset, Assembly]) -> LocalTraining:
    return local_training(world[0])


@pytest.mark.parametrize(("items", "name"), SYSTEMS)
def test_the_loop_and_one_program_agree(items: str, name: str) -> None:
    """A round of each from the same state: trained in float64, as is what is evaluated."""
    worlds = [own_world(items, name, train__engine=engine) for engine in ("loop", "batched")]
    server, states, clients = trained(worlds[0], rounds=1)
    exact = dict if name in OWN_MODEL else double  # the item scorer's start is float32
    server, states = exact(server), {client: exact(one) for client, one in states.items()}
    one, other = (
        world[2].algorithm.client.updates(
            Broadcast(server, 2, {}), [states[data.client] for data in clients], clients
        )
        for world in worlds
    )
    for alone, together in zip(one, other, strict=True):
        atol = 1e-5 if name in OWN_MODEL else 1e-7  # plain gradients in float32, Adam in float64
        torch.testing.assert_close(together.params, alone.params, rtol=0, atol=atol)
    loop = worlds[0]
    found = evaluate_models(ClientModels(loop[2], 10, server, states), clients)
    for data, one in zip(clients, found, strict=True):
        model = loop[2].algorithm.personalization.model(server, states[data.client])
        alone = evaluate_client(make_scorer(loop[2].task, model, data, 10), data, "test")
        assert np.array_equal(one["test"].ranks_excluded, alone.ranks_excluded)
        assert np.array_equal(one["test"].ranks_kept, alone.ranks_kept)


def test_ranks_are_among_the_catalogue() -> None:
    _, federation, _ = own_world()
    for data, (name, scorer) in product(federation.clients, BASELINES.items()):
        found = evaluate_client(scorer(data), data, "test")
        assert found.ranks_kept.max() <= data.catalogue_size, name
        free = data.catalogue_size - np.array([len(set(u.history("test"))) for u in data.users])
        assert (found.ranks_excluded <= free).all(), name


def test_a_foreign_item_of_high_score_is_not_counted() -> None:
    _, federation, _ = own_world()
    data = federation.clients[0]
    scores = popularity(data)
    foreign = np.setdiff1d(np.arange(1, data.num_items + 1), data.rankable_items)

    def loud(*asked):
        found = scores(*asked)
        found[:, foreign] = 100.0
        return found

    expected = evaluate_client(scores, data, "test")
    assert evaluate_client(loud, data, "test").sums() == expected.sums()


def test_negatives_and_rivals_are_sold_here() -> None:
    _, federation, _ = own_world(data__sampled_99=True)
    for data in federation.clients:
        items, labels = training_pairs(data, 20, np.random.default_rng(0))
        assert np.isin(items[labels == 0], data.rankable_items).all()
        assert all(np.isin(rivals, data.rankable_items).all() for rivals in data.rivals)


def test_a_state_belongs_to_a_catalogue() -> None:
    _, federation, assembly = own_world()
    data = federation.clients[0]
    other = replace(data, own_catalogue=np.append(data.rankable_items, data.num_items + 1))
    assert assembly.fingerprint_of(data) != assembly.fingerprint_of(other)


@pytest.mark.parametrize("items", ITEM_MODES)
def test_only_what_the_client_sells_is_recommended(items: str) -> None:
    served = serve(**OWN, model__items=items)
    _, federation, _ = own_world(items, "pfsr")
    for data in federation.clients:
        sold = {data.item_ids[code - 1] for code in data.rankable_items}
        foreign = next(raw for raw in data.item_ids if raw not in sold)
        known = data.users[0].user
        answers = [
            recommend(served, known, 100),
            recommend(served, "guest", 100, [foreign, *list(sold)[:2]], client=data.client),
            recommend(served, "guest", 100, [], client=data.client),
        ]
        for answer in answers:
            assert {one.item for one in answer.recommendations} <= sold
        assert answers[1].skipped == (foreign,)


def test_the_log_of_a_single_user_is_no_catalogue() -> None:
    """Nothing is left to rank but the item that was held out: an untrained model has HR 1."""
    with pytest.raises(SettingsError, match="any model then ranks first.*'common'"):
        tiny_world(federation__catalogues="own", federation__partition="user")


def test_a_node_with_data_of_its_own_follows_the_setting(tmp_path) -> None:
    rows = [
        f"{user},{market}{item},{item},{market}"
        for market in "xy"
        for user in (f"{market}1", f"{market}2")
        for item in range(4)
    ]
    (tmp_path / "log.csv").write_text("user,item,timestamp,market\n" + "\n".join(rows) + "\n")
    settings, _, _ = tiny_world(
        federation__catalogues="own",
        federation__partition="column",
        federation__column="market",
        federation__values="x",
        data__source="file",
        data__path=str(tmp_path / "log.csv"),
    )
    config = {"data-path": str(tmp_path / "log.csv"), "name": "shop", "state-dir": str(tmp_path)}
    assert [data.client for data in load_federation(settings).clients] == ["market-x"]
    node = make_node(settings, config)
    sold = {data.client: data.rankable_items.tolist() for data in node.clients}
    assert sold == {"shop/market-x": [1, 2, 3, 4], "shop/market-y": [5, 6, 7, 8]}
