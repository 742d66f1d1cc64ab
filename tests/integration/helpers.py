"""Reading a run back, and comparing it with the plain loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pfsr_core.assembly.assemble import assemble
from pfsr_core.assembly.data import load_federation
from pfsr_core.assembly.settings import Settings
from pfsr_core.federated.algorithm import ServerState
from pfsr_core.federated.simulation import States, run
from pfsr_core.params import Params
from pfsr_core.serving.node_store import NodeStore
from pfsr_core.settings.fields import Value
from server_app.checkpoints import load_checkpoint
from server_app.run_log import RunLog
from tests.helpers.tiny import tiny_settings

TIMES = {"seconds", "node-seconds", "peak-memory"}  # the only figures that may differ


def settings_in(directory: Path, **changes: Value) -> Settings:
    """A tiny run that writes below ``directory``, without baselines and finetuning."""
    quick: dict[str, Value] = {"run__baselines": False, "algorithm__finetune": False}
    return tiny_settings(**{"run__directory": str(directory / "runs"), **quick, **changes})


def plain_loop(settings: Settings, nodes: int = 1) -> tuple[ServerState, States]:
    federation = load_federation(settings)
    algorithm = assemble(settings, federation.catalogue).algorithm
    clients = sorted(federation.clients, key=lambda data: data.client)
    return run(
        algorithm,
        clients,
        rounds=settings.federation.rounds,
        seed=settings.run.seed,
        participation=settings.federation.participation,
        nodes=nodes,
    )


def final_server(log: RunLog, algorithm: str) -> ServerState:
    """What the last checkpoint holds, whatever its fingerprint is."""
    from safetensors import safe_open

    place = log.path(f"checkpoint-{algorithm}")
    with safe_open(place / "checkpoint.safetensors", framework="pt") as file:
        mark = json.loads(file.metadata()["progress"])["fingerprint"]
    progress = load_checkpoint(place, mark)
    assert progress is not None
    return progress.server


def stored_states(log: RunLog, settings: Settings, directory: Path, nodes: int) -> States:
    """The last private state of every client that has one, out of the nodes' stores."""
    federation = load_federation(settings)
    assembly = assemble(settings, federation.catalogue)
    stores = [NodeStore(directory / "state" / f"node-{p}.sqlite") for p in range(nodes)]
    states: States = {}
    for data in federation.clients:
        key = (log.run_id, settings.algorithm.name, data.client)
        for store in stores:
            rounds = store.rounds(*key)
            if rounds:
                state = store.load(*key, rounds[-1], assembly.fingerprint_of(data))
                assert state is not None
                states[data.client] = state
    return states


def assert_same(found: Params, expected: Params) -> None:
    """Tensor for tensor, bit for bit."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def assert_same_server(found: ServerState, expected: ServerState) -> None:
    assert_same(dict(found.params), dict(expected.params))
    assert_same(dict(found.slots), dict(expected.slots))
    assert (found.round, dict(found.signals)) == (expected.round, dict(expected.signals))


def lines(log: RunLog) -> list[dict[str, Any]]:
    text = log.path("metrics.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def without_times(log: RunLog) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines(log)]


def with_rounds(settings: Settings, rounds: int) -> Settings:
    return replace(settings, federation=replace(settings.federation, rounds=rounds))
