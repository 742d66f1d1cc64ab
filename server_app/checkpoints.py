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

CHECKPOINT_FILE = "checkpoint.safetensors"
PARAMS_PREFIX, SLOTS_PREFIX, SERVED_PREFIX = "params/", "slots/", "served/"


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


def save_checkpoint(checkpoint_directory: Path, progress: Progress, fingerprint: str) -> None:
    """Writes a run's progress atomically.

    Args:
        checkpoint_directory: Where the file is written.
        progress: What the run continues from.
        fingerprint: Of the model and the data that the progress belongs to.
    """
    server_state, served_state = progress.server, progress.served or ServerState({})
    header_fields = {
        "fingerprint": fingerprint,
        "round": server_state.round,
        "signals": dict(server_state.signals),
        "names": [list(server_state.params), list(server_state.slots)],
        "served": [served_state.round, dict(served_state.signals)] if progress.served else None,
        "last-rounds": dict(progress.last_rounds),
        "pending": progress.pending,
        "best": progress.best,
        "bytes-down": progress.bytes_down,
        "bytes-up": progress.bytes_up,
        "seconds": progress.seconds,
    }
    tensors = {
        PARAMS_PREFIX + tensor_name: tensor.contiguous()
        for tensor_name, tensor in server_state.params.items()
    }
    tensors |= {
        SLOTS_PREFIX + tensor_name: tensor.contiguous()
        for tensor_name, tensor in server_state.slots.items()
    }
    tensors |= {
        SERVED_PREFIX + tensor_name: tensor.clone()
        for tensor_name, tensor in served_state.params.items()
    }
    write_atomically(
        checkpoint_directory / CHECKPOINT_FILE,
        save_tensors(tensors, {"progress": json.dumps(header_fields)}),
    )


def load_checkpoint(checkpoint_directory: Path, fingerprint: str) -> Progress | None:
    """Reads what :func:`save_checkpoint` wrote.

    Args:
        checkpoint_directory: Where the file is.
        fingerprint: Of the model and the data to continue with.

    Returns:
        The progress, or None without a checkpoint.

    Raises:
        CheckpointError: The file is damaged, or belongs to another model or other data.
    """
    checkpoint_path = checkpoint_directory / CHECKPOINT_FILE
    if not checkpoint_path.exists():
        return None
    try:
        with safe_open(checkpoint_path, framework="pt") as file:
            header_fields = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint_path} is damaged ({error}). Fix: restore it from a backup, or "
            f"begin a new run."
        ) from None
    if header_fields["fingerprint"] != fingerprint:
        raise CheckpointError(
            f"{checkpoint_path} belongs to model and data {header_fields['fingerprint']}, these "
            f"are {fingerprint}. Fix: resume with the settings and the data of that run."
        )
    return _progress(header_fields, tensors)


def _progress(header_fields: Mapping[str, Any], tensors: Params) -> Progress:
    param_names, slot_names = header_fields["names"]
    server_state = ServerState(
        params={tensor_name: tensors[PARAMS_PREFIX + tensor_name] for tensor_name in param_names},
        round=header_fields["round"],
        signals=header_fields["signals"],
        slots={tensor_name: tensors[SLOTS_PREFIX + tensor_name] for tensor_name in slot_names},
    )
    return Progress(
        server=server_state,
        last_rounds=header_fields["last-rounds"],
        pending=header_fields["pending"],
        best=header_fields["best"],
        served=_served(header_fields, tensors),
        bytes_down=header_fields["bytes-down"],
        bytes_up=header_fields["bytes-up"],
        seconds=header_fields["seconds"],
    )


def _served(header_fields: Mapping[str, Any], tensors: Params) -> ServerState | None:
    if header_fields.get("served") is None:
        return None
    served_round, signals = header_fields["served"]
    served_params = {
        tensor_name: tensors[SERVED_PREFIX + tensor_name]
        for tensor_name in header_fields["names"][0]
    }
    return ServerState(served_params, served_round, signals)
