"""What every algorithm promises, held against the whole registry."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.compatibility import algorithm_names
from pfsr_core.assembly.registries import ALGORITHMS
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import simulation
from pfsr_core.federated.algorithm import Broadcast
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ITEM_MODES
from pfsr_core.models.parameter_names import ROW_NAMES
from pfsr_core.params import Params, Shapes, clone, distance, shapes_of
from pfsr_core.settings.fields import SettingsError
from tests.helpers.tiny import ITEMS_OF, OWN_MODEL, tiny_settings, tiny_world

PAIRS = [
    (name, items)
    for name in ALGORITHMS
    for items in ITEM_MODES
    if name not in ITEMS_OF or items == ITEMS_OF[name]
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every algorithm, with every item mode that it has where a test asks for ``items``."""
    if "items" in metafunc.fixturenames:
        metafunc.parametrize(("name", "items"), PAIRS)
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", ALGORITHMS)


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def with_rows_of(assembly: Assembly, data: ClientDataset) -> Shapes:
    """Shapes of a client's whole model: its private tensors have the rows of its own items."""
    private = assembly.task.partition.private & set(ROW_NAMES)
    rows = len(data.touched) + 1
    return {**assembly.shapes, **{name: (rows, *assembly.shapes[name][1:]) for name in private}}


def test_a_round_sends_what_it_declares_and_writes_no_input(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
    algorithm, data = assembly.algorithm, federation.clients[0]
    server, state = algorithm.server.init(), algorithm.client.init(data)
    for _ in range(2):
        shared, before = clone(server.params), clone(state)
        update = algorithm.client_update(server.broadcast(), state, data)
        assert shapes_of(update.params) == algorithm.client.reply_shapes
        assert same(server.params, shared) and same(state, before)
        assert update.weight == (1.0 if name == "pfedrec" else data.num_interactions)
        reply = simulation.node_update(algorithm, server.broadcast(), {}, [data])[0]
        state, server = update.state, algorithm.server.update(server, reply)
    whole = algorithm.personalization.model(server.params, state)
    assert shapes_of(whole) == with_rows_of(assembly, data)
    for view in algorithm.personalization.variants.values():
        assert shapes_of(view(server.params, state)) == shapes_of(whole)


@pytest.mark.parametrize("own", ITEMS_OF)
def test_an_item_mode_of_its_own_is_demanded(own: str) -> None:
    settings = tiny_settings(algorithm__name=own)
    private = replace(settings, model=replace(settings.model, items="private"))
    demand = f"write model.items = '{ITEMS_OF[own]}'"
    with pytest.raises(SettingsError, match=demand):
        assemble(private, ["a", "b"])
    with pytest.raises(SettingsError, match=demand):
        algorithm_names(private)


@pytest.mark.parametrize("own", OWN_MODEL)
def test_soft_targets_need_a_next_item(own: str) -> None:
    with pytest.raises(SettingsError, match=r"predicts no next item.*semantic-share = 0"):
        tiny_world(algorithm__name=own, train__semantic_share=0.3)


def test_what_is_private_is_never_in_a_reply(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
    partition = assembly.task.partition.names.check(assembly.shapes)
    assert not [key for key in assembly.algorithm.client.reply_shapes if key in partition.private]
    table = len(federation.split.item_ids) + 1
    rows = {key for key, shape in assembly.algorithm.client.reply_shapes.items() if table in shape}
    assert bool(rows) == (items in ("shared", "dual") and name != "local-only")


def test_same_seed_same_bytes(name: str, items: str) -> None:
    ends = []
    for _ in range(2):
        _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
        torch.manual_seed(torch.seed())  # the global generator must not matter
        ends.append(simulation.run(assembly.algorithm, federation.clients, rounds=2, seed=1))
    (server, states), (other_server, other_states) = ends
    assert same(server.params, other_server.params)
    assert all(same(states[client], other_states[client]) for client in states)


@pytest.mark.parametrize("nodes", [2, 5, 6])
def test_the_number_of_nodes_changes_only_the_order_of_summation(name: str, nodes: int) -> None:
    """In one round: the next one's training makes more of any difference than a bound could say."""
    _, federation, assembly = tiny_world(algorithm__name=name)
    one, _ = simulation.run(assembly.algorithm, federation.clients, rounds=1, seed=1)
    many, _ = simulation.run(assembly.algorithm, federation.clients, rounds=1, seed=1, nodes=nodes)
    torch.testing.assert_close(many.params, one.params, rtol=1e-6, atol=1e-6)


def test_it_learns(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(
        algorithm__name=name,
        model__items=items,
        train__local_epochs=2,
        train__learning_rate=0.01,
        train__item_learning_rate=0.01,
        train__residual_learning_rate=0.01,
        train__projection_learning_rate=0.01,
    )
    losses = []
    simulation.run(
        assembly.algorithm,
        federation.clients,
        rounds=8,
        seed=1,
        on_round=lambda report: losses.append(
            report.reply.metrics["train-loss"] / report.reply.metrics["train-targets"]
        ),
    )
    # A binary loss begins below ln 2, and users of one client contradict each other.
    assert losses[-1] < losses[0] - (0.05 if name in OWN_MODEL else 0.2)


def test_an_absent_client_keeps_its_state(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
    seen: dict[str, Params] = {}

    def check(report: simulation.RoundReport) -> None:
        for client, state in report.states.items():
            if client not in report.asked:
                assert same(state, seen[client])
        seen.update({client: clone(state) for client, state in report.states.items()})

    simulation.run(
        assembly.algorithm, federation.clients, rounds=4, seed=1, participation=0.5, on_round=check
    )


def test_finetuning_sends_nothing_and_changes_the_private_part(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
    data, algorithm = federation.clients[0], assembly.algorithm
    server, states = simulation.run(algorithm, federation.clients, rounds=1, seed=1)
    state = algorithm.finetune(server.broadcast(), states[data.client], data)
    before = algorithm.personalization.model(server.params, states[data.client])
    after = algorithm.personalization.model(server.params, state)
    assert shapes_of(after) == with_rows_of(assembly, data)
    assert any(not torch.equal(before[key], after[key]) for key in before)


def test_a_client_without_a_target_sends_the_shared_model_back(name: str, items: str) -> None:
    _, federation, assembly = tiny_world(algorithm__name=name, model__items=items)
    left = 0 if name in OWN_MODEL else 1  # what is trained on: items, or pairs of neighbours
    user = federation.clients[0].users[0]
    lonely = replace(user, train=user.train[:left])
    data = replace(federation.clients[0], users=(lonely,))
    server = assembly.algorithm.server.init()
    state = assembly.algorithm.client.init(data)
    for round_ in (1, 2):
        broadcast = Broadcast(server.params, round_, {})
        update = assembly.algorithm.client_update(broadcast, state, data)
        assert all(torch.equal(update.params[key], server.params[key]) for key in server.params)
        state = update.state


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_the_server_takes_the_step_that_is_set(name: str, optimizer: str) -> None:
    """Of every algorithm that sends anything: a step ten times as short ends elsewhere."""
    ends = []
    for rate in (0.01, 0.1):
        _, federation, assembly = tiny_world(
            algorithm__name=name,
            algorithm__server__optimizer=optimizer,
            algorithm__server__learning_rate=rate,
        )
        ends.append(simulation.run(assembly.algorithm, federation.clients, rounds=1, seed=1)[0])
    start = assembly.algorithm.server.init().params
    if start:
        near, far = (float(distance(end.params, start)) for end in ends)
        assert far == pytest.approx(10 * near, rel=1e-3) and near > 0
