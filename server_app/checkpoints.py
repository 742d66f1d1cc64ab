"""What a run continues from: one file, replaced atomically after each round.

Tensors and numbers lie in one safetensors file, the numbers as JSON in its header, so that there is
no instant at which the two belong to different rounds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from pfsr_core.federated.algorithm import ServerState
from pfsr_core.files import write_atomically
from pfsr_core.params import Params

CHECKPOINT = "checkpoint.safetensors"
PARAMS, SLOTS, SERVED = "params/", "slots/", "served/"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be continued from; names the file and the fix."""


@dataclass(frozen=True)
class Progress:
    """Everything an algorithm's run knows after a round.

    Attributes:
        server: the server's state after the round.
        last_rounds: the last round of each client whose answer was aggregated.
        pending: the line of the last round, whose evaluation comes with the next one.
        best: the round with the best validation so far, with its metrics.
        served: the server after that round, where it is served.
        bytes_down: sent so far.
        bytes_up: received so far.
        seconds: that the rounds took so far.
    """

    server: ServerState
    last_rounds: Mapping[str, int] = field(default_factory=dict)
    pending: Mapping[str, Any] | None = None
    best: Mapping[str, Any] | None = None
    served: ServerState | None = None
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0


def save_checkpoint(directory: Path, progress: Progress, fingerprint: str) -> None:
    """Writes ``progress``; ``fingerprint`` names the model and the data it belongs to."""
    server, served = progress.server, progress.served or ServerState({})
    numbers = {
        "fingerprint": fingerprint,
        "round": server.round,
        "signals": dict(server.signals),
        "names": [list(server.params), list(server.slots)],
        "served": [served.round, dict(served.signals)] if progress.served else None,
        "last-rounds": dict(progress.last_rounds),
        "pending": progress.pending,
        "best": progress.best,
        "bytes-down": progress.bytes_down,
        "bytes-up": progress.bytes_up,
        "seconds": progress.seconds,
    }
    tensors = {PARAMS + name: tensor.contiguous() for name, tensor in server.params.items()}
    tensors |= {SLOTS + name: tensor.contiguous() for name, tensor in server.slots.items()}
    tensors |= {SERVED + name: tensor.clone() for name, tensor in served.params.items()}
    write_atomically(
        directory / CHECKPOINT, save_tensors(tensors, {"progress": json.dumps(numbers)})
    )


def load_checkpoint(directory: Path, fingerprint: str) -> Progress | None:
    """What :func:`save_checkpoint` wrote, or None. Raises CheckpointError."""
    path = directory / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            numbers = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}). Fix: restore it from a backup, or begin a new run."
        ) from None
    if numbers["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{path} belongs to model and data {numbers['fingerprint']}, these are {fingerprint}. "
            f"Fix: resume with the settings and the data of that run."
        )
    return _progress(numbers, tensors)


def _progress(numbers: Mapping[str, Any], tensors: Params) -> Progress:
    params, slots = numbers["names"]
    server = ServerState(
        params={name: tensors[PARAMS + name] for name in params},
        round=numbers["round"],
        signals=numbers["signals"],
        slots={name: tensors[SLOTS + name] for name in slots},
    )
    return Progress(
        server=server,
        last_rounds=numbers["last-rounds"],
        pending=numbers["pending"],
        best=numbers["best"],
        served=_served(numbers, tensors),
        bytes_down=numbers["bytes-down"],
        bytes_up=numbers["bytes-up"],
        seconds=numbers["seconds"],
    )


def _served(numbers: Mapping[str, Any], tensors: Params) -> ServerState | None:
    if numbers.get("served") is None:
        return None
    round_, signals = numbers["served"]
    params = {name: tensors[SERVED + name] for name in numbers["names"][0]}
    return ServerState(params, round_, signals)
