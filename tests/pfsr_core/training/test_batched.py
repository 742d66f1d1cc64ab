"""Clients trained together end where each would have ended alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pfsr_core.assembly.assemble import local_training, make_algorithm
from pfsr_core.assembly.registries import ALGORITHMS, ENCODERS
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.algorithm import Broadcast, ClientUpdate
from pfsr_core.federated.model import Assembly
from pfsr_core.models.compressors import USERS
from pfsr_core.params import Params
from pfsr_core.settings.fields import Value
from pfsr_core.training import grouping
from pfsr_core.training.batched import BatchedClient, _batched_client, _groups, train_clients
from pfsr_core.training.grouping import Size
from pfsr_core.training.local import Job
from pfsr_core.training.loop import train
from pfsr_core.training.task import Task
from tests.helpers.float64 import double
from tests.helpers.tiny import OWN_MODEL, tiny_world

SMALL_STEPS: dict[str, Value] = {
    "federation__partition": "user",
    "train__batch_size": 1,  # so that clients have different numbers of steps
    "train__local_epochs": 2,
    "model__max_length": 6,
    "algorithm__pfsr__fisher_samples": 4,
}
RATES = (
    "train__learning_rate",
    "train__item_learning_rate",
    "train__residual_learning_rate",
    "train__projection_learning_rate",
)

COMPRESSED = [
    *(("tokens", "sasrec", name) for name in ALGORITHMS if name not in OWN_MODEL),
    ("tokens", "hstu", "pfsr"),
    ("state", "gru4rec", "pfsr"),
    ("state", "mamba1", "fed-prox"),
    ("state", "associative-mamba", "local-only"),
]


def some_clients(clients: tuple[ClientDataset, ...]) -> list[ClientDataset]:
    """Five of different sizes, and one whose user has nothing to predict."""
    lonely = clients[5].users[0]
    empty = replace(clients[5], users=(replace(lonely, train=lonely.train[:1]),))
    return [*clients[:4], empty, clients[6]]


def without_noise(task: Task) -> Task:
    """The task with attention's key biases out of reach of gradients: none is theirs but rounding.

    A key bias shifts all scores of a query alike. Its gradient is a sum that rounds to 1e-18 or so,
    to another one in every engine and on every processor. Adam and the magnitude loss make up to
    10,000 times as much of it with every step (learning rate * lambda2 / epsilon), until it is as
    large as any other change; the sums over all coordinates, which a client's norm and that loss
    are, would pass it on to everything else.
    """

    def apply(model: Params, *inputs: Any) -> Tensor:
        biases = {n: t.detach() + 0 * t for n, t in model.items() if n.endswith("key.bias")}
        return task.model.apply({**model, **biases}, *inputs)

    return replace(task, model=replace(task.model, apply=apply))


def updates(engine: str, rounds: int = 2, **changes: Value) -> list[list[ClientUpdate]]:
    """Rounds of all the clients in float64, each from the state that the one before it left."""
    chosen = {**SMALL_STEPS, **changes, "train__engine": engine}
    settings, federation, assembly = tiny_world(**chosen)
    algorithm = make_algorithm(without_noise(assembly.task), settings)
    clients = some_clients(federation.clients)
    states = [double(algorithm.client.init(data)) for data in clients]
    shared, signals, done = double(algorithm.server.init().params), {"target-norm": 0.01}, []
    for round_ in range(1, rounds + 1):
        done.append(algorithm.client.updates(Broadcast(shared, round_, signals), states, clients))
        states = [update.state for update in done[-1]]
    return done


def assert_close(found: Params, expected: Params, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("items", ["private", "dual", "semantic"])
def test_a_batch_equals_the_loop(algorithm: str, encoder: str, items: str) -> None:
    changes: dict[str, Value] = {"algorithm__name": algorithm, "model__encoder": encoder}
    changes["model__items"] = items
    loop, batched = (updates(engine, **changes) for engine in ("loop", "batched"))
    for expected_round, found_round in zip(loop, batched, strict=True):
        for expected, found in zip(expected_round, found_round, strict=True):
            assert_close(found.params, expected.params, 1e-7)
            assert_close(found.state, expected.state, 1e-7)
            assert found.metrics == pytest.approx(expected.metrics, rel=1e-6)
            assert found.norm == pytest.approx(expected.norm, rel=1e-6)


@pytest.mark.parametrize(("compressor", "encoder", "algorithm"), COMPRESSED)
def test_compressed_histories_equal_the_loop(compressor: str, encoder: str, algorithm: str) -> None:
    """Clients of several users, each with a row of its own."""
    changes: dict[str, Value] = {"algorithm__name": algorithm, "model__encoder": encoder}
    changes |= {"model__compressor": compressor, "model__recent": 3, "model__items": "dual"}
    changes |= {"model__personal_memory": True, "federation__partition": "group"}
    changes |= {"federation__clients": 8, "train__local_epochs": 1}
    loop, batched = (updates(engine, **changes) for engine in ("loop", "batched"))
    for expected, found in zip(loop[-1], batched[-1], strict=True):
        assert_close(found.params, expected.params, 1e-7)
        assert_close(found.state, expected.state, 1e-7)
        rows = found.state[USERS].flatten(1).any(1).tolist()
        assert not rows[0], "a stranger has nothing of anybody"
        if algorithm == "fecosr":
            assert not any(rows), "its rounds train nothing private"
        else:
            assert all(rows[1:]) or len(rows) == 2  # the user with nothing to predict


@pytest.mark.parametrize(
    "changes",
    [
        {"model__items": "shared"},
        {"model__dropout": 0.0},
        {"algorithm__pfsr__two_phases": False, "algorithm__pfsr__anchor": "global"},
        {"algorithm__pfsr__mask_mode": "minmax", "algorithm__pfsr__serve": "personal"},
        {"train__batch_size": 3, "train__round_decay": 0.5},
        {"train__optimizer": "sgd", "train__learning_rate": 0.1, "model__items": "dual"},
    ],
    ids=["shared items", "no dropout", "one phase", "minmax", "batches", "plain gradients"],
)
def test_variants_of_pfsr_equal_the_loop(changes: dict[str, Value]) -> None:
    loop, batched = (updates(engine, **changes) for engine in ("loop", "batched"))
    for expected, found in zip(loop[-1], batched[-1], strict=True):
        assert_close(found.params, expected.params, 1e-7)
        assert_close(found.state, expected.state, 1e-7)


def jobs_of(assembly: Assembly, clients: list[ClientDataset]) -> list[Job]:
    task = assembly.task
    starts = [
        {**task.partition.init_shared(), **task.partition.init_private(data)} for data in clients
    ]
    return [
        Job(params, data, stream)
        for stream, (params, data) in enumerate(zip(starts, clients, strict=True))
    ]


@pytest.mark.parametrize("items", ["private", "dual", "semantic"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_in_float32_the_difference_is_rounding(encoder: str, items: str) -> None:
    """With plain gradients, whose rounding stays in proportion: Adam divides each coordinate by its
    own size, so that the rounding of one that is nearly zero may move it by a whole step."""
    changes: dict[str, Value] = {"model__encoder": encoder, "train__engine": "batched"}
    changes |= {"model__items": items, "model__item_std": 0.2, "train__optimizer": "sgd"}
    changes |= dict.fromkeys(RATES, 0.1)
    settings, federation, assembly = tiny_world(**{**SMALL_STEPS, **changes})
    jobs, config = jobs_of(assembly, some_clients(federation.clients)), local_training(settings)
    before = [{n: t.clone() for n, t in job.params.items()} for job in jobs]
    for (found, _), job in zip(train_clients(assembly.task, config, jobs), jobs, strict=True):
        assert_close(found, train(assembly.task, config, job)[0], 4e-6)
    for job, params in zip(jobs, before, strict=True):
        assert all(torch.equal(job.params[name], params[name]) for name in params)


def test_small_clients_share_a_group_large_ones_train_alone() -> None:
    settings, federation, assembly = tiny_world(**SMALL_STEPS)
    config = local_training(settings).with_settings(batch_size=2)
    clients = [
        _batched_client(assembly.task, config, job)
        for job in jobs_of(assembly, list(federation.clients))
    ]
    everyone = sorted(index for group in _groups(clients, None) for index in group)
    assert everyone == list(range(len(clients)))
    limit = int(np.median([client.size.positions for client in clients]))
    for group in _groups(clients, limit):
        counts = [clients[index].steps for index in group]
        assert counts == sorted(counts, reverse=True)
        assert all(clients[index].size.positions <= limit for index in group) and len(group) > 1


def fits(clients: list[BatchedClient], group: list[int]) -> bool:
    sizes = [clients[index].size for index in group]
    return Size(*(max(parts) for parts in zip(*sizes, strict=True))).fits(len(group))


@pytest.mark.parametrize("bound", ["MAX_PARAMETERS", "MAX_POSITIONS", "MAX_LOGITS"])
def test_memory_bounds_the_groups(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    settings, federation, assembly = tiny_world(**SMALL_STEPS)
    jobs = jobs_of(assembly, list(federation.clients))
    clients = [_batched_client(assembly.task, local_training(settings), job) for job in jobs]
    assert len(list(_groups(clients, None))) == 1
    monkeypatch.setattr(
        grouping, bound, {"MAX_PARAMETERS": 9000, "MAX_POSITIONS": 90, "MAX_LOGITS": 900}[bound]
    )
    groups = list(_groups(clients, None))
    assert len(groups) > 1 and all(fits(clients, group) for group in groups)
    assert sorted(index for group in groups for index in group) == list(range(len(clients)))


def test_a_run_repeats_byte_for_byte() -> None:
    first, second = (updates("batched", rounds=1) for _ in range(2))
    for one, other in zip(first[0], second[0], strict=True):
        assert all(torch.equal(one.state[name], other.state[name]) for name in one.state)
