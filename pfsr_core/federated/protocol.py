"""What the two apps send each other: kinds of messages, names of records, instructions, numbers.

Shared parameters travel as one flat float32 vector (:mod:`pfsr_core.params`); everything else is
numbers under names. Flower's own types appear in neither: the apps wrap what is made here. Nothing
here loads torch: a node's process that only passes messages on does not need it.

    query.register   which clients a node hosts: partition, names, sizes, digests
    query.baselines  sums of the model-free baselines
    train            one round: evaluate what was received, train, answer with the mean
    query.finish     after the last round: evaluate, finetune, evaluate, keep the model for serving
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

REGISTER = "query.register"
BASELINES = "query.baselines"
TRAIN = "train"
FINISH = "query.finish"

SHARED = "shared"  # the one array record, and the one array in it
METRICS = "metrics"
CONFIG = "config"
FACTS = "facts"  # text and counts of a registration

WEIGHT = "weight"
NORMS = "norms"
SECONDS = "seconds"
PEAK_MEMORY = "peak-memory"  # MiB of the client process
TRAINING = "training/"  # prefix of the algorithm's own sums
FINETUNED = "finetuned/"  # prefix of the sums after finetuning
OUTCOME = "outcome/"  # prefix of the sums of how it ended for the clients
CLIENT = "client/"  # prefix of lists with one number a client

Number = int | float
Metrics = dict[str, Number | list[int] | list[float]]
Flat = NDArray[np.float32]


class ProtocolError(ValueError):
    """A message that lacks a required field or has a malformed one."""


@dataclass(frozen=True)
class Instruction:
    """What a node is asked to do in ``train`` and ``query.finish``.

    Attributes:
        run: the id of the run.
        algorithm: the name of the algorithm.
        round: the round, from 1 on; the last exchange has the number after the last round.
        last_rounds: of each client that the instruction concerns, the last round whose answer was
            aggregated: the version of its private state to continue from. Clients without such a
            round are left out.
        clients: those to train, or to finish with.
        signals: numbers that the algorithm sends with the shared parameters.
        evaluate: rank the held-out items with what was received, before training; of the node's
            clients, or of those to train, by run.evaluate-clients.
        finetune: of ``query.finish``: train once more before evaluating again.
        install: of ``query.finish``: keep the model for serving.
    """

    run: str
    algorithm: str
    round: int
    last_rounds: Mapping[str, int]
    clients: tuple[str, ...] = ()
    signals: Mapping[str, float] = field(default_factory=dict)
    evaluate: bool = False
    finetune: bool = False
    install: bool = False


def instruction_to_config(instruction: Instruction) -> dict[str, Any]:
    """An instruction as text, numbers and lists of one type each."""
    return {
        "run": instruction.run,
        "algorithm": instruction.algorithm,
        "round": instruction.round,
        "hosted": list(instruction.last_rounds),
        "last-rounds": list(instruction.last_rounds.values()),
        "clients": list(instruction.clients),
        "signal-names": list(instruction.signals),
        "signal-values": [float(signal_value) for signal_value in instruction.signals.values()],
        "evaluate": instruction.evaluate,
        "finetune": instruction.finetune,
        "install": instruction.install,
    }


def instruction_from_config(config: Mapping[str, Any]) -> Instruction:
    """Undoes :func:`instruction_to_config`; raises ProtocolError when something is missing."""
    try:
        return Instruction(
            run=config["run"],
            algorithm=config["algorithm"],
            round=config["round"],
            last_rounds=dict(zip(config["hosted"], config["last-rounds"], strict=True)),
            clients=tuple(config["clients"]),
            signals=dict(zip(config["signal-names"], config["signal-values"], strict=True)),
            evaluate=config["evaluate"],
            finetune=config["finetune"],
            install=config["install"],
        )
    except (KeyError, ValueError) as error:
        raise ProtocolError(
            f"an instruction without {error}: server and node differ in version"
        ) from None


def prefixed(prefix: str, sums: Mapping[str, float]) -> dict[str, float]:
    """The same numbers, each under ``prefix`` and its name."""
    return {prefix + metric_name: metric_value for metric_name, metric_value in sums.items()}


def under(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers whose name begins with ``prefix``, without it; raises ProtocolError on a list."""
    names = [metric_name for metric_name in metrics if metric_name.startswith(prefix)]
    return {metric_name.removeprefix(prefix): scalar(metrics, metric_name) for metric_name in names}


def scalar(metrics: Mapping[str, Any], metric_name: str) -> float:
    """One number; raises ProtocolError when it is missing or is not a single number."""
    metric_value = metrics.get(metric_name)
    if not isinstance(metric_value, int | float) or isinstance(metric_value, bool):
        raise ProtocolError(f"{metric_name} is {_kind(metric_value)} instead of a number")
    return float(metric_value)


def numbers(metrics: Mapping[str, Any], metric_name: str, count: int) -> list[float]:
    """A list of ``count`` numbers; raises ProtocolError when it is anything else."""
    metric_value = metrics.get(metric_name)
    if not isinstance(metric_value, list) or len(metric_value) != count:
        raise ProtocolError(f"{metric_name} is {_kind(metric_value)} instead of a list of {count}")
    return [float(list_entry) for list_entry in metric_value]


def check_names(
    metrics: Mapping[str, Any], exact_names: Sequence[str], name_prefixes: Sequence[str]
) -> None:
    """Raises ProtocolError on a metric that no part of the protocol names."""
    for metric_name in metrics:
        if metric_name not in exact_names and not metric_name.startswith(tuple(name_prefixes)):
            raise ProtocolError(f"unknown metric {metric_name!r}")


def _kind(metric_value: Any) -> str:
    if metric_value is None:
        return "missing"
    return (
        f"a list of {len(metric_value)}"
        if isinstance(metric_value, list)
        else type(metric_value).__name__
    )
