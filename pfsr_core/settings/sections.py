"""Run settings: typed, frozen, parsed once from the flat table that Flower hands over.

Flower refuses unknown keys but does not check types. Here every value is converted and checked, and
an error names the key and what it may be. Keys are kebab-case with dots, ``algorithm.mask-mode``,
and map one to one to fields, ``settings.algorithm.mask_mode``. The defaults are PFSR's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pfsr_core.settings.fields import setting


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


def runs_directory(run: RunSettings) -> Path:
    """Where runs are kept: run.directory, else $PFSR_HOME/runs, else ./runs."""
    home = os.environ.get("PFSR_HOME")
    return Path(run.directory or (Path(home) / "runs" if home else "runs")).expanduser()
