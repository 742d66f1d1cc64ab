"""The settings that no single module owns: data, federation, model, training and the run.

Those of an algorithm stand beside it, in :mod:`pfsr_core.algorithms`;
:mod:`pfsr_core.assembly.settings` puts all of them together. The defaults are those of PFSR on
ML-100K. ``docs/reference/settings.md`` and the run config of ``pyproject.toml`` are written from
these declarations by ``pfsr settings --write``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pfsr_core.settings.fields import setting


@dataclass(frozen=True)
class DataSettings:
    """The training data: the interaction log and how it is cleaned and split."""

    source: str = setting("ml-100k", "name of the dataset; 'pfsr data --help' lists them")
    path: str = setting(
        "", "file or directory of the dataset, where it is not the one that 'pfsr data' downloads"
    )
    user_core: int = setting(
        0, "drop users with fewer interactions than this, repeatedly; 0: keep all", low=0
    )
    item_core: int = setting(
        0,
        "drop items with fewer interactions than this, counted within each value of "
        "federation.column, repeatedly; 0: keep all",
        low=0,
    )
    join_variants: float = setting(
        0.0,
        "join items whose sets of reviews have at least this Jaccard index, e.g. 0.3; 0: join none",
        low=0.0,
        high=1.0,
    )
    protocol: str = setting(
        "strict",
        "order of interactions with equal timestamps, and choice of training negatives: strict, "
        "file order and any item outside the training history; paper-pfedrec, as in the published "
        "code of PFedRec, which leaks held-out items",
        choices=("strict", "paper-pfedrec"),
    )
    sampled_99: bool = setting(
        False,
        "also rank the held-out item among 99 sampled items, as published federated tables do",
    )


@dataclass(frozen=True)
class FederationSettings:
    """Who the clients are, how many take part in a round, and what the server accepts."""

    partition: str = setting(
        "group",
        "what a client is: one user, a group of users, or one value of federation.column",
        choices=("user", "group", "column"),
    )
    clients: int = setting(20, "number of clients with federation.partition = 'group'", low=1)
    sizes: str = setting(
        "", "number of users of each client, e.g. '100 50 50'; empty: clients of equal size"
    )
    column: str = setting("", "column of the data that names the client, e.g. 'market'")
    values: str = setting(
        "", "values of federation.column that take part, e.g. 'ca uk'; empty: all of them"
    )
    catalogues: str = setting(
        "common",
        "items that a client ranks: common, those of the whole federation; own, those in its log",
        choices=("common", "own"),
    )
    participation: float = setting(
        1.0, "share of the clients that train in a round", low=1e-6, high=1.0
    )
    rounds: int = setting(24, "number of training rounds", low=1)
    max_weight: float = setting(
        1e7, "largest aggregation weight that the server accepts from a client", low=1.0
    )
    max_change: float = setting(
        1000.0,
        "largest L2 norm of a node's change of the shared parameters that the server accepts",
        low=1e-9,
    )
    min_clients: int = setting(
        1, "a round with replies for fewer clients than this is abandoned and repeated", low=1
    )
    round_timeout: float = setting(900.0, "seconds that a round may take", low=1.0)
    start_timeout: float = setting(
        300.0, "seconds that the server waits for the nodes before the first round", low=1.0
    )
    min_nodes: int = setting(
        0,
        "number of nodes to start with; 0: one for every part of the data, or whichever are there "
        "where nodes own their data",
        low=0,
    )


@dataclass(frozen=True)
class ModelSettings:
    """The next-item model: item vectors, sequence encoder and history compressor."""

    encoder: str = setting("associative-mamba", "sequence encoder")
    items: str = setting(
        "private",
        "where item vectors come from and live: private, a table that stays on the client; shared, "
        "an averaged table; dual, an averaged table and a private residual; semantic, projected "
        "public vectors and a private residual; adapted, projected public vectors and a private "
        "low-rank adapter",
    )
    item_vectors: str = setting(
        "tf-idf",
        "public item vectors with model.items = 'semantic' or 'adapted', and of soft targets: "
        "tf-idf, hashed, wordllama, sentence:<model>, the path of a file, or co-occurrence",
    )
    text_dim: int = setting(64, "width of the text vector of an item", low=1)
    id_dim: int = setting(
        960, "width of an item's random vector, which tells items with similar texts apart", low=0
    )
    id_weight: float = setting(
        1.0, "L2 norm of an item's random vector, relative to that of its text vector", low=0.0
    )
    adapter_rank: int = setting(8, "rank of the market adapter with model.items = 'adapted'", low=1)
    item_start: str = setting(
        "co-occurrence",
        "initial values of private item tables: common, the same random vectors on every client; "
        "secret, random vectors of its own; co-occurrence, moved towards items of the same "
        "histories",
        choices=("common", "secret", "co-occurrence"),
    )
    item_std: float = setting(
        0.05, "standard deviation of the initial coordinates of item vectors", low=0.0
    )
    embedding_dim: int = setting(64, "width of item vectors and of the encoder", low=4)
    num_layers: int = setting(2, "number of encoder layers", low=1)
    num_heads: int = setting(4, "number of heads of the encoder", low=1)
    state_dim: int = setting(32, "state size of the Mamba encoders", low=1)
    conv_width: int = setting(4, "width of the causal convolution of the Mamba encoders", low=1)
    expand: int = setting(
        2, "inner width of the recurrent encoders as a multiple of model.embedding-dim", low=1
    )
    dropout: float = setting(0.4, "dropout probability", low=0.0, high=0.95)
    max_length: int = setting(
        50, "number of most recent items of a history that the model reads", low=2
    )
    compressor: str = setting(
        "identity",
        "how long histories are read: identity, the most recent items alone; tokens, older items "
        "as learned memory tokens; state, older items as a recurrent state",
    )
    tokens: int = setting(
        4, "number of learned memory tokens with model.compressor = 'tokens'", low=1
    )
    recent: int = setting(
        50, "largest number of uncompressed items with model.compressor = 'tokens'", low=1
    )
    personal_memory: bool = setting(
        False,
        "keep a private vector for each user, which is added to the memory tokens or is the first "
        "recurrent state, as model.compressor says",
    )


@dataclass(frozen=True)
class TrainSettings:
    """How a client trains in a round.

    Adam's first step is the sign of the gradient whatever its size. Of a client that takes few
    steps per round, plain gradients tell the server more (federated SGD, McMahan et al. 2017).
    """

    optimizer: str = setting(
        "adam",
        "optimizer of the clients: adam, or sgd without momentum; pfedrec always takes sgd",
        choices=("adam", "sgd"),
    )
    learning_rate: float = setting(0.002, "learning rate of the encoder on the clients", low=1e-9)
    item_learning_rate: float = setting(
        0.0004, "learning rate of the item table; smaller for small datasets", low=0.0
    )
    residual_learning_rate: float = setting(
        0.0004, "learning rate of private item residuals and of the rows of adapters", low=0.0
    )
    projection_learning_rate: float = setting(
        0.002, "learning rate of the projection of public item vectors", low=0.0
    )
    local_epochs: int = setting(1, "passes over a client's data in a round", low=1)
    round_decay: float = setting(
        1.0,
        "factor that all learning rates of the clients are multiplied by after every round",
        low=0.1,
        high=1.0,
    )
    batch_size: int = setting(16, "number of windows, or of pairs with pfedrec, in a batch", low=1)
    engine: str = setting(
        "auto",
        "how a node trains its clients: loop, one after the other (always with train.negatives); "
        "batched, many at a time; auto, small clients batched and large ones one by one",
        choices=("auto", "loop", "batched"),
    )
    negatives: int = setting(
        0, "number of items sampled for the loss of a batch; 0: the whole catalogue", low=0
    )
    semantic_share: float = setting(
        0.0,
        "share of the target probability that goes to items with texts like the next one's "
        "(label smoothing by text); 0: hard targets",
        low=0.0,
        high=1.0,
    )
    semantic_neighbours: int = setting(
        50, "number of items that the share train.semantic-share is divided among", low=1
    )
    semantic_temperature: float = setting(
        0.1,
        "temperature of the softmax over text similarity that divides train.semantic-share: the "
        "smaller, the more the most similar items get",
        low=1e-3,
    )


@dataclass(frozen=True)
class RunSettings:
    """What is compared, evaluated, served and written in a run."""

    name: str = setting("pfsr", "name of the run, with which its id begins")
    seed: int = setting(0, "seed of all randomness that is not a client's secret", low=0)
    compare: str = setting(
        "fed-avg local-only",
        "algorithms to run for comparison after algorithm.name, e.g. 'local-only fed-avg'",
    )
    baselines: bool = setting(
        True, "evaluate popularity, item-kNN and Markov chains on every client"
    )
    evaluate_every: int = setting(1, "number of rounds between evaluations", low=1)
    evaluate_clients: str = setting(
        "all",
        "which clients are evaluated: all, or asked, those that take part in the round",
        choices=("all", "asked"),
    )
    selected_by: str = setting(
        "users",
        "what the best round is selected by: validation NDCG@10 as the mean over users, or over "
        "clients",
        choices=("users", "clients"),
    )
    serve_round: str = setting(
        "last",
        "round whose model is finetuned and served: last, or best, the selected round, which takes "
        "run.evaluate-clients = 'all' and an algorithm whose private states fit any round",
        choices=("last", "best"),
    )
    directory: str = setting("", "where runs are written; empty: $PFSR_HOME/runs or ./runs")
    resume: str = setting("", "id of a run to continue from its last completed round")
    warm_start: str = setting("", "id of an earlier run whose private states to start with")

    @property
    def may_serve_best(self) -> bool:
        """Whether the best round is served by algorithms that can; a sample's best one is not."""
        return self.serve_round == "best" and self.evaluate_clients == "all"


def runs_directory(run_settings: RunSettings) -> Path:
    """Where runs are kept: run.directory, else $PFSR_HOME/runs, else ./runs."""
    pfsr_home = os.environ.get("PFSR_HOME")
    default_directory = Path(pfsr_home) / "runs" if pfsr_home else "runs"
    return Path(run_settings.directory or default_directory).expanduser()
