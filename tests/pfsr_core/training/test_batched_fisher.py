"""Fisher information of clients together is that of each alone."""

from __future__ import annotations

import pytest
import torch

from pfsr_core.algorithms.variable_response import client_samples, target_log_probability
from pfsr_core.assembly.assemble import local_training
from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.federated.model import Assembly
from pfsr_core.items.modes import ITEM_MODES
from pfsr_core.params import Params
from pfsr_core.settings.fields import Value
from pfsr_core.training import batched_fisher
from pfsr_core.training.batched_fisher import GRADIENTS_AT_ONCE, Sampled, client_fishers
from pfsr_core.training.local import Job
from tests.helpers.tiny import tiny_world

USERS: dict[str, Value] = {"federation__partition": "user", "model__dropout": 0.0}


def moved(params: Params, seed: int) -> Params:
    """In float64, every client with an encoder of its own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor.double() + 0.1 * torch.randn(tensor.shape, generator=generator).double()
        for name, tensor in params.items()
    }


def sampled(
    settings: Settings, assembly: Assembly, clients: list[ClientDataset], count: int
) -> list[Sampled]:
    task, training = assembly.task, local_training(settings)
    found = []
    for seed, data in enumerate(clients):
        private = task.partition.init_private(data)
        job = Job({**task.partition.init_shared(), **private}, data, seed)
        moved_whole = moved(job.params, seed)
        found.append(client_samples(task, training, count, moved_whole, job))
    return found


@pytest.mark.parametrize("items", ITEM_MODES)
@pytest.mark.parametrize("bound", [GRADIENTS_AT_ONCE, 1])
def test_together_equals_alone(monkeypatch: pytest.MonkeyPatch, items: str, bound: int) -> None:
    """Whatever the number of samples, the sizes of the tables and those of the groups."""
    monkeypatch.setattr(batched_fisher, "GRADIENTS_AT_ONCE", bound)
    settings, federation, assembly = tiny_world(**USERS, model__items=items)
    clients = sampled(settings, assembly, list(federation.clients[:5]), 7)
    clients += sampled(settings, assembly, list(federation.clients[5:8]), 20)
    log_probability = target_log_probability(assembly.task)
    alone, together = (
        client_fishers(log_probability, clients, engine) for engine in ("loop", "batched")
    )
    assert len({len(one.samples[1]) for one in clients}) > 1
    for expected, found in zip(alone, together, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)
    assert all(bool((fisher["norm.weight"] > 0).any()) for fisher in together)


def test_nobody_has_no_information() -> None:
    _, _, assembly = tiny_world()
    assert client_fishers(target_log_probability(assembly.task), [], "batched") == []
