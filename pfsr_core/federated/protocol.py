"""What the two apps say to each other: kinds of messages, names of records, orders, numbers.

Shared parameters travel as one flat float32 vector (:mod:`pfsr_core.params`); everything else is
numbers under names. Flower's own types appear in neither: the apps wrap what is made here. Nothing
here loads torch: a node's process that only passes messages on does not need it.

    query.hello      who are you: partition, clients, sizes, digests
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

HELLO = "query.hello"
BASELINES = "query.baselines"
TRAIN = "train"
FINISH = "query.finish"

SHARED = "shared"  # the one array record, and the one array in it
METRICS = "metrics"
CONFIG = "config"
FACTS = "facts"  # text and counts of a hello

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
    """A message that does not say what its kind must say."""


@dataclass(frozen=True)
class Order:
    """What a node is asked to do in ``train`` and ``query.finish``.

    ``last_rounds``: the last round whose answer was aggregated of each client that the order
    concerns and that has one, which is the version of its private state to continue from.
    ``clients``: those to train, or to finish with. ``evaluate``: rank the held-out items with what
    was received, before training; of the node's clients, or of those to train, as
    run.evaluate-clients says.
    ``finetune`` and ``install`` belong to ``finish``.
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


def order_to_config(order: Order) -> dict[str, Any]:
    """An order as text, numbers and lists of one type each."""
    return {
        "run": order.run,
        "algorithm": order.algorithm,
        "round": order.round,
        "hosted": list(order.last_rounds),
        "last-rounds": list(order.last_rounds.values()),
        "clients": list(order.clients),
        "signal-names": list(order.signals),
        "signal-values": [float(value) for value in order.signals.values()],
        "evaluate": order.evaluate,
        "finetune": order.finetune,
        "install": order.install,
    }


def order_from_config(config: Mapping[str, Any]) -> Order:
    """Undoes :func:`order_to_config`; raises ProtocolError when something is missing."""
    try:
        return Order(
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
            f"an order without {error}: server and node differ in version"
        ) from None


def prefixed(prefix: str, sums: Mapping[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in sums.items()}


def under(prefix: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers whose name begins with ``prefix``, without it; raises ProtocolError on a list."""
    found = {name: value for name, value in metrics.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): scalar(found, name) for name in found}


def scalar(metrics: Mapping[str, Any], name: str) -> float:
    """One number; raises ProtocolError when it is missing or is not a single number."""
    value = metrics.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ProtocolError(f"{name} is {_kind(value)} instead of a number")
    return float(value)


def numbers(metrics: Mapping[str, Any], name: str, count: int) -> list[float]:
    """A list of ``count`` numbers; raises ProtocolError when it is anything else."""
    value = metrics.get(name)
    if not isinstance(value, list) or len(value) != count:
        raise ProtocolError(f"{name} is {_kind(value)} instead of a list of {count}")
    return [float(part) for part in value]


def check_names(metrics: Mapping[str, Any], exact: Sequence[str], prefixes: Sequence[str]) -> None:
    """Raises ProtocolError on a metric that no part of the protocol names."""
    for name in metrics:
        if name not in exact and not name.startswith(tuple(prefixes)):
            raise ProtocolError(f"unknown metric {name!r}")


def _kind(value: Any) -> str:
    if value is None:
        return "missing"
    return f"a list of {len(value)}" if isinstance(value, list) else type(value).__name__
