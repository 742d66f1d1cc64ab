"""The runs of ``tests.same_tensors``, and how a checkout runs one: all that knows its modules.

Settings are written with nested keys. A checkout from before them gets its own by OLD_KEYS, and
figures by their former names are renamed by OLD_FIGURES; both go, with ``_play_before``, when no
such checkout is compared any more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Value = str | int | float | bool
Tensors = dict[str, torch.Tensor]
Figures = dict[str, Value | None]

SMOKE: dict[str, Value] = {
    "data.source": "synthetic",
    "data.path": "users=40,items=60,seed=1,mean_length=15",
    "federation.clients": 4,
    "federation.rounds": 2,
    "model.embedding-dim": 16,
    "model.state-dim": 8,
    "model.num-heads": 2,
    "model.max-length": 16,
    "model.id-dim": 64,
    "train.batch-size": 16,
    "algorithm.pfsr.fisher-samples": 16,
    "run.compare": "",
}
PFEDREC: dict[str, Value] = {
    "algorithm.name": "pfedrec",
    "data.sampled-99": True,
    "federation.partition": "user",
    "model.items": "shared",
    "model.item-std": 1.0,
    "train.learning-rate": 0.1,
    "train.item-learning-rate": 1.0,
    "train.batch-size": 256,
    "algorithm.max-row-change": 0.5,
    "algorithm.server.optimizer": "momentum",
    "algorithm.server.momentum": 0.0,
    "algorithm.server.learning-rate": 5.0,
    "run.baselines": False,
}
FECOSR: dict[str, Value] = {
    "algorithm.name": "fecosr",
    "data.source": "synthetic-markets",
    "data.path": "",
    "federation.partition": "column",
    "federation.column": "market",
    "federation.catalogues": "own",
    "model.encoder": "sasrec",
    "model.items": "adapted",
    "train.semantic-share": 0.3,
    "algorithm.weight-power": 0.5,
    "algorithm.finetune": True,
    "algorithm.fecosr.finetune-epochs": 2,
    "algorithm.fecosr.finetune-step": 0.5,
    "run.selected-by": "clients",
    "run.serve-round": "best",
}
FED_AVG: dict[str, Value] = {"algorithm.name": "fed-avg"}
TOKENS: dict[str, Value] = {
    "model.encoder": "sasrec",
    "model.items": "shared",
    "model.compressor": "tokens",
    "model.recent": 6,
    "model.personal-memory": True,
}
ADAM: dict[str, Value] = {
    "algorithm.server.optimizer": "adam",
    "algorithm.server.learning-rate": 0.006,
    "algorithm.server.decay": 0.99,
    "algorithm.server.epsilon": 1e-6,
}

RUNS: dict[str, dict[str, Value]] = {
    name: {**SMOKE, **changes}
    for name, changes in {
        "pfsr": {"algorithm.name": "pfsr"},
        "pfsr-two-phases-minmax": {
            "algorithm.name": "pfsr",
            "algorithm.pfsr.two-phases": True,
            "algorithm.pfsr.mask-mode": "minmax",
            "algorithm.pfsr.fisher-threshold": 0.3,
            "algorithm.pfsr.anchor": "global",
            "algorithm.pfsr.anchor-strength": 0.2,
            "algorithm.pfsr.magnitude-side": "both",
            "algorithm.pfsr.aggregation": "count",
        },
        "fed-avg": {**FED_AVG, "algorithm.finetune": True},
        "fed-prox": {"algorithm.name": "fed-prox", "algorithm.fed-prox.strength": 0.05},
        "local-only": {"algorithm.name": "local-only"},
        "pfedrec": PFEDREC,
        "pfedrec-item-step-batch": {**PFEDREC, "algorithm.pfedrec.item-step": "batch"},
        "fecosr": FECOSR,
        "fecosr-adapter": {
            **FECOSR,
            "algorithm.fecosr.finetune-mode": "adapter",
            "algorithm.fecosr.safety-rule": False,
        },
        "items-shared": {**FED_AVG, "model.items": "shared", "algorithm.max-row-change": 0.05},
        "items-dual": {"algorithm.name": "pfsr", "model.items": "dual"},
        "items-semantic": {**FED_AVG, "model.items": "semantic"},
        "items-adapted": {**FED_AVG, "model.items": "adapted"},
        "items-start-common": {**FED_AVG, "model.item-start": "common"},
        "compressor-tokens": {**FED_AVG, **TOKENS},
        "compressor-state": {
            **FED_AVG,
            "model.compressor": "state",
            "model.items": "shared",
            "model.personal-memory": True,
        },
        "engine-loop": {"algorithm.name": "pfsr", "train.engine": "loop"},
        "engine-batched": {"algorithm.name": "pfsr", "train.engine": "batched"},
        "server-adam": {**FED_AVG, **ADAM, "model.items": "semantic", "train.optimizer": "sgd"},
        "encoder-mamba": {**FED_AVG, "model.encoder": "mamba"},
        "encoder-mamba1": {**FED_AVG, "model.encoder": "mamba1"},
        "encoder-hstu": {**FED_AVG, "model.encoder": "hstu"},
        "encoder-gru4rec": {**FED_AVG, "model.encoder": "gru4rec"},
        "sampled-loss": {**FED_AVG, "train.negatives": 20, "federation.participation": 0.5},
        "user-clients": {
            "algorithm.name": "pfsr",
            "federation.partition": "user",
            "federation.participation": 0.3,
            "train.semantic-share": 0.3,
            "run.baselines": False,
        },
    }.items()
}

OLD_KEYS = {
    **{
        f"algorithm.server.{key}": f"algorithm.server-{key}"
        for key in ("optimizer", "learning-rate", "momentum", "decay", "epsilon")
    },
    **{
        f"algorithm.pfsr.{key}": f"algorithm.{key}"
        for key in (
            "mask-mode",
            "rho",
            "fisher-samples",
            "serve",
            "anchor",
            "magnitude-strength",
            "magnitude-side",
            "two-phases",
            "aggregation",
        )
    },
    "algorithm.pfsr.fisher-threshold": "algorithm.tau",
    "algorithm.pfsr.anchor-strength": "algorithm.keep-strength",
    "algorithm.fed-prox.strength": "algorithm.proximal-strength",
    "algorithm.pfedrec.item-step": "algorithm.item-step",
    "algorithm.pfedrec.negatives-per-positive": "algorithm.negatives-per-positive",
    **{
        f"algorithm.fecosr.{key}": f"algorithm.{key}"
        for key in ("finetune-mode", "finetune-epochs", "finetune-step", "safety-rule")
    },
}
OLD_FIGURES = {"excluded": "seen-filtered", "kept": "seen-included", "views": "variants"}
NOT_COMPARED = {"seconds"}


class Played(NamedTuple):
    """What a run ended with: shared parameters, clients' states, summary entry, rows of clients."""

    shared: Tensors
    states: Mapping[str, Tensors]
    entry: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def play(settings: Mapping[str, Value]) -> tuple[Tensors, Figures]:
    """One run by the modules of the checkout in the working directory."""
    before = importlib.util.find_spec("pfsr_core.plain_run") is not None
    played = (_play_before if before else _play)(settings)
    tensors = {f"shared {name}": tensor for name, tensor in played.shared.items()}
    for client, state in played.states.items():
        tensors |= {f"client {client} {name}": tensor for name, tensor in state.items()}
    figures: Figures = dict(flatten(played.entry))
    for row in played.rows:
        # a client's row of the CSV, by the columns that name it
        place = "/".join(str(row[key]) for key in ("method", "client", "split"))
        figures |= {f"{place}/{key}": value for key, value in flatten(row)}
    return tensors, figures


def _play_before(settings: Mapping[str, Value]) -> Played:
    from pfsr_core import plain_run
    from pfsr_core.assembly import assemble, load_federation
    from pfsr_core.settings import Settings, flat_settings, parse_settings

    _check_place(plain_run.__file__)
    parsed = parse_settings(with_keys_of(flat_settings(Settings()), settings))
    federation = load_federation(parsed)
    experiment = plain_run.Experiment(parsed, federation, assemble(parsed, federation.catalogue))
    outcome = plain_run.train_and_evaluate(experiment, lambda _line: None)
    return Played(outcome.shared, outcome.states, outcome.row, outcome.clients)


def _play(settings: Mapping[str, Value]) -> Played:
    from pfsr_core.assembly.assemble import assemble
    from pfsr_core.assembly.data import load_federation
    from pfsr_core.assembly.settings import Settings, flat_settings, parse_settings
    from pfsr_core.runs import local

    _check_place(local.__file__)
    parsed = parse_settings(with_keys_of(flat_settings(Settings()), settings))
    federation = load_federation(parsed)
    experiment = local.Experiment(parsed, federation, assemble(parsed, federation.catalogue))
    outcome = local.train_and_evaluate(experiment, lambda _line: None)
    return Played(outcome.server.params, outcome.states, outcome.entry, outcome.rows)


def with_keys_of(known: Mapping[str, object], settings: Mapping[str, Value]) -> dict[str, Value]:
    """The settings by the keys that the checkout knows, today's or else its former ones."""
    return {
        key if key in known else OLD_KEYS.get(key, key): value for key, value in settings.items()
    }


def _check_place(file: str | None) -> None:
    """Raises RuntimeError where another checkout's packages were imported."""
    if not file or not Path(file).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"{file} was imported, but the checkout is {Path.cwd()}")


def flatten(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested tables by their path, in today's names."""
    if not isinstance(value, Mapping):
        yield place, value
        return
    for key, inner in value.items():
        if key not in NOT_COMPARED:
            parts = [OLD_FIGURES.get(part, part) for part in str(key).split("/")]
            yield from flatten(inner, "/".join([*([place] if place else []), *parts]))
