"""Ditto's own rules, against its equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pfsr_core.algorithms.ditto import PERSONAL_MODEL, DittoSettings, ditto
from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.assembly.assemble import local_training
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated import simulation
from pfsr_core.federated.algorithm import Broadcast, FederatedAlgorithm
from pfsr_core.params import Params, distance, of_prefix, select, shapes_of
from pfsr_core.randomness import stream_seed
from pfsr_core.training.batched import train_clients
from pfsr_core.training.local import Job, LocalTraining
from pfsr_core.training.task import Task
from tests.helpers.tiny import tiny_world

ITEMS = ("private", "shared", "semantic")


def world(**changes: Any) -> tuple[Task, LocalTraining, list[ClientDataset]]:
    settings, federation, assembly = tiny_world(**changes)
    return assembly.task, local_training(settings), list(federation.clients)


def same(a: Params, b: Params) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def two_rounds(algorithm: FederatedAlgorithm, clients: list[ClientDataset]) -> Any:
    return simulation.run(algorithm, clients, rounds=2, seed=0, participation=0.5)


@pytest.mark.parametrize("items", ITEMS)
def test_what_is_sent_is_that_of_federated_averaging(items: str) -> None:
    task, training, clients = world(model__items=items)
    average = fed_avg(task, training)
    ours, states = two_rounds(ditto(task, training, DittoSettings()), clients)
    theirs, private = two_rounds(average, clients)
    assert same(ours.params, theirs.params)
    for client, state in states.items():
        assert same(select(state, task.partition.private), private[client])


@pytest.mark.parametrize("items", ITEMS)
def test_no_personal_tensor_is_in_a_reply(items: str) -> None:
    task, training, clients = world(model__items=items)
    algorithm = ditto(task, training, DittoSettings())
    server, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    data = clients[0]
    update = algorithm.client_update(server.broadcast(), states[data.client], data)
    sent = fed_avg(task, training)
    plain = sent.client_update(
        server.broadcast(), select(states[data.client], task.partition.private), data
    )
    assert algorithm.client.reply_shapes == shapes_of(server.params)
    assert same(update.params, plain.params)
    assert (update.weight, update.norm, update.metrics) == (plain.weight, plain.norm, plain.metrics)


def test_a_personal_model_begins_as_the_first_global_model() -> None:
    task, training, clients = world()
    algorithm, data = ditto(task, training, DittoSettings()), clients[0]
    server, state = algorithm.server.init(), algorithm.client.init(data)
    assert same(algorithm.personalization.model(server.params, state), {**server.params, **state})


def test_without_strength_it_is_local_training_from_the_last_personal_model() -> None:
    task, training, clients = world()
    algorithm = ditto(task, training, DittoSettings(strength=0.0, personal_epochs=2))
    server, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    data = clients[0]
    personal = of_prefix(states[data.client], PERSONAL_MODEL)
    job = Job(personal, data, stream_seed(training.seed, "client", data.client, 2))
    alone = training.with_settings(local_epochs=2).in_round(2)
    ((expected, _),) = train_clients(task, alone, [job])
    update = algorithm.client_update(server.broadcast(), states[data.client], data)
    assert same(of_prefix(update.state, PERSONAL_MODEL), expected)


def test_a_large_strength_holds_the_personal_model_to_the_global_one() -> None:
    """A step of SGD with a learning rate of .9 / lambda takes nine tenths of the gap away."""
    task, training, clients = world(train__optimizer="sgd", train__learning_rate=1e-3)
    data = clients[0]

    def gap(strength: float) -> float:
        algorithm = ditto(task, training, DittoSettings(strength=strength, personal_epochs=3))
        server, state = algorithm.server.init(), algorithm.client.init(data)
        moved = {name: tensor + 0.1 for name, tensor in server.params.items()}
        for params in (moved, server.params):  # the personal model begins 0.1 off
            update = algorithm.client_update(Broadcast(params, 1), state, data)
            state = update.state
        personal = select(algorithm.personalization.model(server.params, state), server.params)
        return float(distance(personal, server.params))

    assert gap(900.0) < 0.01 * gap(0.0)
    assert gap(900.0) < gap(90.0) < gap(0.0)


def test_an_absent_client_serves_the_personal_model_that_it_has() -> None:
    task, training, clients = world()
    algorithm = ditto(task, training, DittoSettings())
    server, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    later = {name: tensor + 1.0 for name, tensor in server.params.items()}
    for state in states.values():
        now, then = (algorithm.personalization.model(p, state) for p in (server.params, later))
        assert same(now, then)


def test_the_personal_model_takes_epochs_of_its_own() -> None:
    task, training, clients = world()
    data = clients[0]
    ends = []
    for epochs in (1, 2):
        algorithm = ditto(task, training, DittoSettings(personal_epochs=epochs))
        start = algorithm.server.init().broadcast()
        ends.append(algorithm.client_update(start, algorithm.client.init(data), data))
    once, twice = ends
    assert same(once.params, twice.params)
    assert not same(of_prefix(once.state, PERSONAL_MODEL), of_prefix(twice.state, PERSONAL_MODEL))


def test_the_newest_personal_models_belong_to_the_last_round() -> None:
    """With a shared table FedAvg's states, which are empty, fit any round; these do not."""
    task, training, _ = world(model__items="shared")
    assert fed_avg(task, training).client.states_fit_any_round
    assert not ditto(task, training, DittoSettings()).client.states_fit_any_round


def test_a_variant_is_of_the_global_model() -> None:
    task, training, clients = world(model__items="semantic")
    algorithm, average = ditto(task, training, DittoSettings()), fed_avg(task, training)
    server, states = simulation.run(algorithm, clients, rounds=1, seed=0)
    assert algorithm.has_full_variant
    for name, variant in algorithm.personalization.variants.items():
        theirs = average.personalization.variants[name]
        for state in states.values():
            private = select(state, task.partition.private)
            assert same(variant(server.params, state), theirs(server.params, private))
