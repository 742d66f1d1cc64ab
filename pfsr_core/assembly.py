"""Settings to objects: the one place that touches every registry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import torch
from torch import nn

from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.fed_prox import fed_prox
from pfsr_core.algorithms.local_only import local_only
from pfsr_core.algorithms.pfedrec import pfedrec
from pfsr_core.algorithms.pfsr import Magnitude, Response, pfsr
from pfsr_core.algorithms.server_step import ServerStep, server_step
from pfsr_core.data import load_dataset
from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.data.federation import (
    partition_by_column,
    partition_by_group,
    partition_by_user,
)
from pfsr_core.data.filters import k_core
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import Split, leave_one_out
from pfsr_core.federated import FederatedAlgorithm
from pfsr_core.item_modes import Catalogue, ItemMode, item_mode
from pfsr_core.local_training import LocalTraining, Serving, Task, stream_seed
from pfsr_core.models.associative_mamba import associative_encoder
from pfsr_core.models.compressors import (
    USERS,
    Compressor,
    LearnedTokens,
    Memory,
    RecurrentState,
    WholeHistory,
)
from pfsr_core.models.gru4rec import gru4rec_encoder
from pfsr_core.models.hstu import hstu_encoder
from pfsr_core.models.layers import Encoder
from pfsr_core.models.mamba1 import mamba1_encoder
from pfsr_core.models.next_item import (
    ITEMS,
    ROW_NAMES,
    NextItemModel,
    make_apply,
    make_serving,
)
from pfsr_core.models.sasrec import sasrec_encoder
from pfsr_core.params import Params, Partition, Shapes, clone, fingerprint, shapes_of
from pfsr_core.scorer_task import item_scorer_task
from pfsr_core.scorer_training import ScorerTraining
from pfsr_core.settings import ModelSettings, Settings, SettingsError

STATE_LAYOUT = "rows of a client's own items"  # another text refuses states made before it


@dataclass(frozen=True)
class Federation:
    """The data of a run: who the clients are, in a fixed order, and the log they came from."""

    clients: tuple[ClientDataset, ...]
    split: Split
    interactions: Interactions

    @cached_property
    def catalogue(self) -> Catalogue:
        """All items with the words about them."""
        words = {**self.interactions.titles, **self.interactions.texts}
        ids = self.split.item_ids
        return Catalogue(ids, tuple(words.get(raw, "") for raw in ids))


@dataclass(frozen=True)
class Assembly:
    """A task and an algorithm over it.

    ``shapes``: all parameters, the private ones with a row for each item of the catalogue.
    ``fingerprint`` names the model. ``vectors_digest`` and ``vectors_method`` of public item
    vectors: see :class:`pfsr_core.data.item_vectors.ItemVectors`; "" without them.
    """

    task: Task
    algorithm: FederatedAlgorithm
    shapes: Shapes
    fingerprint: str
    vectors_digest: str = ""
    vectors_method: str = ""

    def fingerprint_of(self, data: ClientDataset) -> str:
        """Names the model, and whose rows a client's state holds: of which items and users."""
        private, facts = self.task.partition.private, []
        if private & set(ROW_NAMES):
            facts.append(hashlib.sha256(data.touched.tobytes()).hexdigest())
        if USERS in private:
            facts.extend(user.user for user in data.users)
        return fingerprint({}, self.fingerprint, *facts) if facts else self.fingerprint


def load_federation(settings: Settings) -> Federation:
    """Reads, filters, splits and partitions the data. Raises DataError."""
    data = settings.data
    interactions = load_dataset(data.source, data.path)
    if data.user_core or data.item_core:
        interactions = k_core(interactions, data.user_core, data.item_core)
    split = leave_one_out(interactions, data.protocol)
    clients = _partition(settings, split, interactions)
    if data.sampled_99:
        clients = tuple(replace(one, sampled=True) for one in clients)
    return Federation(clients, split, interactions)


def _partition(
    settings: Settings, split: Split, interactions: Interactions
) -> tuple[ClientDataset, ...]:
    federation = settings.federation
    if federation.partition == "user":
        return partition_by_user(split)
    if federation.partition == "column":
        return partition_by_column(split, interactions, federation.column)
    sizes = _sizes(federation.sizes)
    return partition_by_group(split, federation.clients, settings.run.seed, sizes)


def _sizes(text: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not all(word.isdecimal() for word in words):
        raise SettingsError(f"federation.sizes = {text!r}: write whole numbers, e.g. '100 50 50'")
    return tuple(int(word) for word in words)


def assemble(settings: Settings, catalogue: Catalogue | Sequence[str]) -> Assembly:
    """The model over the ``catalogue`` and the algorithm that ``settings`` name.

    Item ids stand for a catalogue without texts. Raises SettingsError when they do not fit each
    other, DataError where item vectors are missing.
    """
    name, catalogue = settings.algorithm.name, _catalogue(catalogue)
    _check_items(name, settings)
    mode = item_mode(settings, catalogue)
    if name in TASKS:
        task = TASKS[name](settings, catalogue.item_ids)
    else:
        task = _make_task(settings, catalogue, mode)
    algorithm = ALGORITHMS[name](task, settings)
    nobody = task.init_private(ClientDataset("", (), catalogue.item_ids))
    shapes = shapes_of({**task.init_shared(), **nobody})
    if mode.private:
        shapes[mode.private] = (len(catalogue.item_ids) + 1, settings.model.embedding_dim)
    model = settings.model
    compressed = "" if model.compressor == IDENTITY else f"{model.compressor} {model.recent}"
    facts = (STATE_LAYOUT, model.encoder, model.items, name, mode.digest, compressed)
    mark = fingerprint(shapes, *filter(None, facts), *catalogue.item_ids)
    return Assembly(task, algorithm, shapes, mark, mode.digest, mode.method)


def make_task(settings: Settings, catalogue: Catalogue | Sequence[str]) -> Task:
    """The next-item model as functions, and the partition of its names by ``model.items``."""
    catalogue = _catalogue(catalogue)
    return _make_task(settings, catalogue, item_mode(settings, catalogue))


def _catalogue(catalogue: Catalogue | Sequence[str]) -> Catalogue:
    return catalogue if isinstance(catalogue, Catalogue) else Catalogue(tuple(catalogue))


def _make_task(settings: Settings, catalogue: Catalogue, mode: ItemMode) -> Task:
    model = make_model(settings, len(catalogue.item_ids))
    compressor = cast(Compressor, model.compressor)
    start = {n: t for n, t in clone(dict(model.named_parameters())).items() if n != ITEMS}
    start = {**mode.shared, **start}
    stranger = {USERS: start.pop(USERS)} if USERS in start else {}
    kept = {*stranger, *([mode.private] if mode.private else [])}
    everything = torch.arange(1, len(catalogue.item_ids) + 1)
    return Task(
        apply=make_apply(model),
        noise_width=model.noise_width,
        reads_times=model.reads_times,
        partition=Partition.of([*start, *kept], private=lambda name: name in kept),
        init_shared=lambda: clone(start),
        init_private=lambda data: {**mode.init_private(data), **_rows_of_users(stranger, data)},
        candidates=lambda data: torch.from_numpy(data.touched) if mode.own_rows else everything,
        unseen_rows=mode.unseen_rows,
        effective=mode.effective,
        averaged=mode.averaged,
        places=compressor.places,
        first_read=compressor.first_read,
        cuts=compressor.cuts,
        serving=_serving(model),
    )


def _rows_of_users(stranger: Params, data: ClientDataset) -> Params:
    """The private rows of a client's users, alike at first: a stranger's, then one for each."""
    count = len(data.users) + 1
    return {name: row.expand(count, *row.shape[1:]).clone() for name, row in stranger.items()}


def _serving(model: NextItemModel) -> Serving | None:
    if isinstance(model.compressor, WholeHistory):
        return None
    return Serving(cast(Memory, model.compressor).begin, *make_serving(model))


def make_model(settings: Settings, num_items: int) -> NextItemModel:
    """The module, started from the run's seed; the global generator is left as it was."""
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.run.seed, "model"))
        encoder = ENCODERS[model.encoder](model)
        compressor = COMPRESSORS[model.compressor](model, encoder)
        return NextItemModel(num_items, model.embedding_dim, encoder, model.dropout, compressor)


def local_training(settings: Settings) -> LocalTraining:
    train = settings.train
    return LocalTraining(
        learning_rate=train.learning_rate,
        item_learning_rate=train.item_learning_rate,
        projection_learning_rate=train.projection_learning_rate,
        local_epochs=train.local_epochs,
        batch_size=train.batch_size,
        max_length=settings.model.max_length,
        seed=settings.run.seed,
        decay=train.round_decay,
        negatives=train.negatives,
        engine=train.engine,
    )


def scorer_training(settings: Settings) -> ScorerTraining:
    algorithm = settings.algorithm
    local = local_training(settings)
    return ScorerTraining(local, algorithm.negatives_per_positive, algorithm.item_step)


def _associative(model: ModelSettings, anchored: bool) -> nn.Module:
    return associative_encoder(
        model.embedding_dim,
        num_layers=model.num_layers,
        state_dim=model.state_dim,
        conv_width=model.conv_width,
        expand=model.expand,
        num_heads=model.num_heads,
        dropout=model.dropout,
        anchored=anchored,
    )


ENCODERS: dict[str, Callable[[ModelSettings], nn.Module]] = {
    "associative-mamba": lambda m: _associative(m, anchored=True),
    "mamba": lambda m: _associative(m, anchored=False),
    "mamba1": lambda m: mamba1_encoder(
        m.embedding_dim, m.num_layers, m.state_dim, m.conv_width, m.expand, m.dropout
    ),
    "sasrec": lambda m: sasrec_encoder(
        m.embedding_dim, m.num_layers, m.num_heads, m.max_length, m.dropout, _extra_places(m)
    ),
    "hstu": lambda m: hstu_encoder(
        m.embedding_dim, m.num_layers, m.num_heads, m.max_length, m.dropout
    ),
    "gru4rec": lambda m: gru4rec_encoder(
        m.embedding_dim, m.num_layers, m.expand * m.embedding_dim, m.dropout
    ),
}


def _extra_places(model: ModelSettings) -> int:
    return model.tokens if model.compressor == "tokens" else 0


def _whole_history(model: ModelSettings, _encoder: nn.Module) -> nn.Module:
    if model.personal_memory:
        raise SettingsError(
            "model.personal-memory needs a memory. Fix: model.compressor = 'tokens' or 'state'."
        )
    return WholeHistory()


def _tokens(model: ModelSettings, encoder: nn.Module) -> nn.Module:
    if not hasattr(encoder, "remember"):
        raise SettingsError(
            f"model.compressor = 'tokens' with the encoder {model.encoder!r}: tokens need "
            f"attention. Fix: model.encoder = 'sasrec' or 'hstu', or model.compressor = 'state'."
        )
    if model.recent >= model.max_length:
        raise SettingsError(
            f"model.recent = {model.recent} leaves nothing to compress of model.max-length = "
            f"{model.max_length}. Fix: make it smaller."
        )
    return LearnedTokens(model.embedding_dim, model.tokens, model.recent, model.personal_memory)


def _state(model: ModelSettings, encoder: nn.Module) -> nn.Module:
    if hasattr(encoder, "remember"):
        raise SettingsError(
            f"model.compressor = 'state' with the encoder {model.encoder!r}: attention's state "
            f"grows with the history. Fix: model.compressor = 'tokens', or a recurrent encoder."
        )
    return RecurrentState(cast(Encoder, encoder), model.personal_memory)


IDENTITY = "identity"
COMPRESSORS: dict[str, Callable[[ModelSettings, nn.Module], nn.Module]] = {
    IDENTITY: _whole_history,
    "tokens": _tokens,
    "state": _state,
}


def _server_step(settings: Settings) -> ServerStep:
    algorithm = settings.algorithm
    return server_step(
        algorithm.server_optimizer, algorithm.server_learning_rate, algorithm.server_momentum
    )


def _fed_avg(task: Task, settings: Settings) -> FederatedAlgorithm:
    return fed_avg(task, local_training(settings), step=_server_step(settings))


def _fed_prox(task: Task, settings: Settings) -> FederatedAlgorithm:
    return fed_prox(task, local_training(settings), settings.algorithm.proximal_strength)


def _pfsr(task: Task, settings: Settings) -> FederatedAlgorithm:
    algorithm = settings.algorithm
    return pfsr(
        task,
        local_training(settings),
        response=Response(
            mask_mode=algorithm.mask_mode,
            rho=algorithm.rho,
            tau=algorithm.tau,
            fisher_samples=algorithm.fisher_samples,
            serve=algorithm.serve,
        ),
        loss=Magnitude(
            keep=algorithm.keep_strength,
            magnitude=algorithm.magnitude_strength,
            side=algorithm.magnitude_side,
            two_phases=algorithm.two_phases,
            anchor=algorithm.anchor,
        ),
        aggregation=algorithm.aggregation,
        step=_server_step(settings),
    )


def _pfedrec(task: Task, settings: Settings) -> FederatedAlgorithm:
    return pfedrec(task, scorer_training(settings), step=_server_step(settings))


ALGORITHMS: dict[str, Callable[[Task, Settings], FederatedAlgorithm]] = {
    "pfsr": _pfsr,
    "fed-avg": _fed_avg,
    "fed-prox": _fed_prox,
    "local-only": lambda task, settings: local_only(task, local_training(settings)),
    "pfedrec": _pfedrec,
}

TASKS: dict[str, Callable[[Settings, Sequence[str]], Task]] = {
    "pfedrec": lambda settings, item_ids: item_scorer_task(
        item_ids, settings.model.embedding_dim, settings.run.seed, settings.model.item_std
    )
}
"""Of the algorithms with a model of their own, whose item table is shared; the others train the
next-item model."""


def _check_items(name: str, settings: Settings) -> None:
    items = settings.model.items
    if name in TASKS and items != "shared":
        raise SettingsError(
            f"{name} averages the item table, but model.items = {items!r}. Fix: write "
            f"model.items = 'shared'; which items clients have then reaches the server."
        )


def algorithm_names(settings: Settings) -> list[str]:
    """The main algorithm, then those of ``run.compare``; none twice. Raises SettingsError."""
    compared = settings.run.compare.replace(",", " ").split()
    for name in compared:
        if name not in ALGORITHMS:
            known = ", ".join(ALGORITHMS)
            raise SettingsError(f"run.compare names {name!r}. Choose among: {known}.")
    names = list(dict.fromkeys([settings.algorithm.name, *compared]))
    for name in names:
        _check_items(name, settings)
    return names
