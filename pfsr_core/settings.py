"""Run settings: typed, frozen, parsed once from the flat table that Flower hands over.

Flower refuses unknown keys but does not check types. Here every value is converted and checked, and
an error names the key and what it may be. Keys are kebab-case with dots, ``algorithm.mask-mode``,
and map one to one to fields, ``settings.algorithm.mask_mode``. The defaults are PFSR's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

Value = bool | int | float | str


class SettingsError(ValueError):
    """A setting that is unknown, of the wrong type or out of range; says which and what fits."""


def setting(default: Value, help: str, **limits: Any) -> Any:
    """A field with its help text and limits: ``low``, ``high`` (inclusive), ``choices``."""
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class DataSettings:
    source: str = setting("ml-100k", "name of the dataset")
    path: str = setting("", "file or directory, where the dataset needs one or one is given")
    user_core: int = setting(0, "drop users with fewer interactions, repeatedly; 0 is off", low=0)
    item_core: int = setting(
        0, "drop items with fewer, counted within each value of federation.column; 0 is off", low=0
    )
    join_variants: float = setting(
        0.0,
        "join items whose sets of reviews have this Jaccard index, e.g. 0.3; 0 is off",
        low=0.0,
        high=1.0,
    )
    protocol: str = setting(
        "strict",
        "order of ties and training negatives; paper-pfedrec repeats published figures, and leaks",
        choices=("strict", "paper-pfedrec"),
    )
    sampled_99: bool = setting(
        False, "rank among 99 sampled items too, as published federated tables do"
    )


@dataclass(frozen=True)
class FederationSettings:
    partition: str = setting("group", "who is a client", choices=("user", "group", "column"))
    clients: int = setting(20, "number of clients, for partition group", low=1)
    sizes: str = setting("", "users of each client, e.g. '100 50 50'; empty: equal sizes")
    column: str = setting("", "the column that names the client, for partition column")
    values: str = setting("", "its values that take part, e.g. 'ca uk'; empty: all of them")
    catalogues: str = setting(
        "common",
        "what a client ranks: the items of the federation, or those in its own log",
        choices=("common", "own"),
    )
    participation: float = setting(1.0, "share of the clients asked a round", low=1e-6, high=1.0)
    rounds: int = setting(24, "training rounds", low=1)
    max_weight: float = setting(1e7, "largest weight a client may claim", low=1.0)
    max_change: float = setting(
        1000.0, "largest L2 norm of a node's change of the shared parameters", low=1e-9
    )
    min_clients: int = setting(1, "fewer answers than this abandon the round", low=1)
    round_timeout: float = setting(900.0, "seconds a round may take", low=1.0)
    start_timeout: float = setting(300.0, "seconds to wait for the nodes", low=1.0)
    min_nodes: int = setting(
        0, "nodes to begin with; 0: every part, or whoever came where nodes own their data", low=0
    )


@dataclass(frozen=True)
class ModelSettings:
    encoder: str = setting(
        "associative-mamba",
        "sequence encoder",
        choices=("associative-mamba", "mamba", "mamba1", "sasrec", "hstu", "gru4rec"),
    )
    items: str = setting(
        "private",
        "where item vectors live",
        choices=("private", "shared", "dual", "semantic", "adapted"),
    )
    item_vectors: str = setting(
        "tf-idf",
        "vectors of items semantic and adapted: tf-idf, hashed, wordllama, sentence:<model>, a "
        "file, or co-occurrence",
    )
    text_dim: int = setting(64, "width of an item's text vector", low=1)
    id_dim: int = setting(960, "random numbers beside it that tell items apart", low=0)
    id_weight: float = setting(1.0, "their length over the text vector's", low=0.0)
    adapter_rank: int = setting(8, "rank of the residuals of items adapted", low=1)
    item_start: str = setting(
        "co-occurrence", "how private tables start", choices=("common", "secret", "co-occurrence")
    )
    item_std: float = setting(0.05, "spread of an item vector's coordinates at the start", low=0.0)
    embedding_dim: int = setting(64, "width of item vectors", low=4)
    num_layers: int = setting(2, "encoder layers", low=1)
    num_heads: int = setting(4, "heads of the encoder", low=1)
    state_dim: int = setting(32, "state size of Mamba encoders", low=1)
    conv_width: int = setting(4, "width of Mamba's causal convolution", low=1)
    expand: int = setting(2, "inner width of Mamba over embedding-dim", low=1)
    dropout: float = setting(0.4, "dropout probability", low=0.0, high=0.95)
    max_length: int = setting(50, "items of a history that the encoder reads", low=2)
    compressor: str = setting(
        "identity",
        "how long histories are read: the latest items, old ones as tokens, or as a state",
        choices=("identity", "tokens", "state"),
    )
    tokens: int = setting(4, "learned tokens in place of old items, compressor tokens", low=1)
    recent: int = setting(50, "items that stay uncompressed at most, compressor tokens", low=1)
    personal_memory: bool = setting(
        False, "a private row for each user: added to the tokens, or the first state"
    )


@dataclass(frozen=True)
class TrainSettings:
    optimizer: str = setting(
        "adam", "of the clients; pfedrec takes plain gradients", choices=("adam", "sgd")
    )
    learning_rate: float = setting(0.002, "its step size on the clients", low=1e-9)
    item_learning_rate: float = setting(0.0004, "its step size on the item table", low=0.0)
    residual_learning_rate: float = setting(
        0.0004, "its step size on private residuals and adapters' rows", low=0.0
    )
    projection_learning_rate: float = setting(
        0.002, "its step size on the projection of item vectors", low=0.0
    )
    local_epochs: int = setting(1, "passes over the client's data a round", low=1)
    round_decay: float = setting(1.0, "step sizes shrink by it every round", low=0.1, high=1.0)
    batch_size: int = setting(16, "windows in a batch", low=1)
    engine: str = setting(
        "auto",
        "how a node trains its clients: one by one (always with train.negatives), as one program, "
        "or the small ones so",
        choices=("auto", "loop", "batched"),
    )
    negatives: int = setting(0, "items sampled for the loss of a batch; 0: all of them", low=0)
    semantic_share: float = setting(
        0.0, "lam: probability that the items most like the next one share", low=0.0, high=1.0
    )
    semantic_neighbours: int = setting(50, "how many of the items most like it", low=1)
    semantic_temperature: float = setting(
        0.1, "tau: the smaller, the more the nearest of them get", low=1e-3
    )


@dataclass(frozen=True)
class AlgorithmSettings:
    name: str = setting(
        "pfsr",
        "federated algorithm",
        choices=("pfsr", "fed-avg", "fed-prox", "local-only", "pfedrec", "fecosr"),
    )
    weight_power: float = setting(
        1.0,
        "a client weighs its interactions to this power; with pfedrec all clients weigh the same",
        low=0.0,
        high=1.0,
    )
    mask_mode: str = setting(
        "quantile", "Fisher mask of PFSR", choices=("quantile", "minmax", "none")
    )
    rho: float = setting(0.25, "share of each tensor kept local, mode quantile", low=0.0, high=1.0)
    tau: float = setting(0.4, "bar for scaled Fisher, mode minmax", low=0.0, high=1.0)
    fisher_samples: int = setting(64, "(prefix, target) samples for the Fisher", low=1)
    serve: str = setting("merged", "what PFSR recommends with", choices=("merged", "personal"))
    anchor: str = setting(
        "local", "what the kept coordinates are held to", choices=("local", "global")
    )
    keep_strength: float = setting(0.1, "lambda1: anchor of the kept coordinates", low=0.0)
    magnitude_strength: float = setting(0.05, "lambda2: magnitude of the shared part", low=0.0)
    magnitude_side: str = setting(
        "above",
        "which norms lambda2 pulls to C_t: those above it, or both",
        choices=("above", "both"),
    )
    two_phases: bool = setting(False, "train kept coordinates first, then the others")
    aggregation: str = setting("zero", "masked coordinates", choices=("zero", "count"))
    proximal_strength: float = setting(0.01, "mu of fed-prox", low=0.0)
    server_optimizer: str = setting(
        "average", "what the server does with the mean", choices=("average", "momentum", "adam")
    )
    server_learning_rate: float = setting(1.0, "server step of momentum and adam", low=0.0)
    server_momentum: float = setting(0.9, "momentum of momentum and adam", low=0.0, high=0.9999)
    server_decay: float = setting(
        1.0, "the server's step shrinks by it every round", low=0.1, high=1.0
    )
    server_epsilon: float = setting(
        1e-3, "tau of the server's adam: changes far below it are not scaled up", low=0.0
    )
    item_step: str = setting(
        "row",
        "a step of pfedrec on an item's row: the mean over its own samples, or over the batch",
        choices=("row", "batch"),
    )
    negatives_per_positive: int = setting(4, "items of label 0 for each of label 1, pfedrec", low=0)
    max_row_change: float = setting(
        0.0, "largest change (L2) of an item's row in a client's update; 0: no bound", low=0.0
    )
    finetune: bool = setting(False, "train once more on each client after the last round")
    finetune_mode: str = setting(
        "all+adapter",
        "what fecosr finetunes: the market adapter, all but it, or both",
        choices=("adapter", "all", "all+adapter"),
    )
    finetune_epochs: int = setting(10, "epochs of it, of which the best one is kept", low=1)
    finetune_step: float = setting(1.0, "its step sizes over those of the rounds", low=1e-6)
    safety_rule: bool = setting(
        True, "fecosr trains every client alone beside, and ships the better model"
    )


@dataclass(frozen=True)
class RunSettings:
    name: str = setting("pfsr", "name of the run, the beginning of its id")
    seed: int = setting(0, "the one seed of everything public", low=0)
    compare: str = setting(
        "fed-avg local-only", "algorithms to run beside it, e.g. 'local-only fed-avg'"
    )
    baselines: bool = setting(True, "popularity, item-kNN, Markov on every client")
    evaluate_every: int = setting(1, "rounds between evaluations", low=1)
    evaluate_clients: str = setting(
        "all", "which clients are evaluated: all, or those that take part", choices=("all", "asked")
    )
    selected_by: str = setting(
        "users",
        "validation NDCG@10 of a round: mean over users, or over clients",
        choices=("users", "clients"),
    )
    serve_round: str = setting(
        "last",
        "whose model is finetuned and served; best: the selected round's, where every client is "
        "evaluated and no private state belongs to a round",
        choices=("last", "best"),
    )
    directory: str = setting("", "where runs are written; empty: $PFSR_HOME/runs or ./runs")
    resume: str = setting("", "id of a run to continue from its last complete round")
    warm_start: str = setting("", "id of an earlier run whose private states to begin with")

    @property
    def may_serve_best(self) -> bool:
        """Whether the best round is served by algorithms that can; a sample's best one is not."""
        return self.serve_round == "best" and self.evaluate_clients == "all"


@dataclass(frozen=True)
class Settings:
    """Everything a run is made from."""

    data: DataSettings = field(default_factory=DataSettings)
    federation: FederationSettings = field(default_factory=FederationSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    run: RunSettings = field(default_factory=RunSettings)


SECTIONS: dict[str, type[Any]] = {
    "data": DataSettings,
    "federation": FederationSettings,
    "model": ModelSettings,
    "train": TrainSettings,
    "algorithm": AlgorithmSettings,
    "run": RunSettings,
}


def parse_settings(flat: Mapping[str, Value]) -> Settings:
    """Settings from dotted keys; what is not given has its default. Raises SettingsError."""
    sections: dict[str, dict[str, Value]] = {name: {} for name in SECTIONS}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        known = _fields(section)
        if name not in known:
            raise SettingsError(f"unknown setting {key!r}. {_nearest(key)}")
        sections[section][name.replace("-", "_")] = _check(key, value, known[name])
    return Settings(**{name: SECTIONS[name](**values) for name, values in sections.items()})


def runs_directory(run: RunSettings) -> Path:
    """Where runs are kept: run.directory, else $PFSR_HOME/runs, else ./runs."""
    home = os.environ.get("PFSR_HOME")
    return Path(run.directory or (Path(home) / "runs" if home else "runs")).expanduser()


def flat_settings(settings: Settings) -> dict[str, Value]:
    """Undoes :func:`parse_settings`: every key with its value."""
    return {
        f"{section}.{name}": getattr(getattr(settings, section), item.name)
        for section in SECTIONS
        for name, item in _fields(section).items()
    }


def _fields(section: str) -> dict[str, Any]:
    if section not in SECTIONS:
        return {}
    return {item.name.replace("_", "-"): item for item in fields(SECTIONS[section])}


def _check(key: str, value: Value, item: Any) -> Value:
    value = _convert(key, value, type(item.default))
    limits = item.metadata
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{key} = {value!r}: write a finite number")
    if "choices" in limits and value not in limits["choices"]:
        raise SettingsError(f"{key} = {value!r}. Choose one of: {', '.join(limits['choices'])}")
    if "low" in limits and not value >= limits["low"]:
        raise SettingsError(f"{key} = {value!r} is below {limits['low']:g}")
    if "high" in limits and not value <= limits["high"]:
        raise SettingsError(f"{key} = {value!r} is above {limits['high']:g}")
    return value


def _convert(key: str, value: Value, kind: type[Value]) -> Value:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        words: dict[type, Callable[[], str]] = {
            bool: lambda: "true or false",
            int: lambda: "a whole number",
            float: lambda: "a number",
            str: lambda: "text in quotes",
        }
        raise SettingsError(
            f"{key} = {value!r} is {type(value).__name__}; it must be {words[kind]()}"
        )
    return value


def _nearest(key: str) -> str:
    from difflib import get_close_matches

    known = [f"{section}.{name}" for section in SECTIONS for name in _fields(section)]
    near = get_close_matches(key, known, 3, 0.4)
    return f"Did you mean {' or '.join(near)}?" if near else f"Sections: {', '.join(SECTIONS)}"
