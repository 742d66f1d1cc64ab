"""Settings to objects: the one place that touches every registry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from pfsr_core.algorithms.fecosr import Finetuning, fecosr
from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.fed_prox import fed_prox
from pfsr_core.algorithms.local_only import local_only
from pfsr_core.algorithms.pfedrec import pfedrec
from pfsr_core.algorithms.pfsr import Magnitude, Response, pfsr
from pfsr_core.algorithms.row_clipping import with_row_clipping
from pfsr_core.algorithms.server_step import ServerStep, server_step
from pfsr_core.data import load_dataset
from pfsr_core.data.cleaning import Cleaning, clean
from pfsr_core.data.client_dataset import ClientDataset, with_own_catalogue
from pfsr_core.data.federation import (
    partition_by_column,
    partition_by_group,
    partition_by_user,
)
from pfsr_core.data.interactions import Interactions
from pfsr_core.data.splits import Split, leave_one_out
from pfsr_core.federated import FederatedAlgorithm
from pfsr_core.item_modes import Catalogue, ItemMode, item_mode, text_vectors
from pfsr_core.local_training import LocalTraining, Task, stream_seed
from pfsr_core.models.associative_mamba import associative_encoder
from pfsr_core.models.gru4rec import gru4rec_encoder
from pfsr_core.models.mamba1 import mamba1_encoder
from pfsr_core.models.next_item import ITEMS, ROW_NAMES, NextItemModel, make_apply
from pfsr_core.models.sasrec import sasrec_encoder
from pfsr_core.params import Partition, Shapes, clone, fingerprint, shapes_of
from pfsr_core.scorer_task import item_scorer_task
from pfsr_core.scorer_training import ScorerTraining
from pfsr_core.settings import ModelSettings, Settings, SettingsError
from pfsr_core.soft_targets import SoftTargetsOf, semantic_targets

STATE_LAYOUT = "rows of a client's own items"  # another text refuses states made before it


@dataclass(frozen=True)
class Federation:
    """The data of a run: who the clients are, in a fixed order, and the log they came from."""

    clients: tuple[ClientDataset, ...]
    split: Split
    interactions: Interactions

    @cached_property
    def catalogue(self) -> Catalogue:
        """All items with the words about them, and the training histories that they occur in."""
        words = {**self.interactions.titles, **self.interactions.texts}
        ids = self.split.item_ids
        histories = tuple(user.train for user in self.split.users)
        return Catalogue(ids, tuple(words.get(raw, "") for raw in ids), histories=histories)


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
        """Names the model and the rows of the item table that a client's state belongs to."""
        items = [] if data.own_catalogue is None else [data.own_catalogue]
        if self.task.partition.private & set(ROW_NAMES):
            items.append(data.touched)
        marks = (hashlib.sha256(codes.tobytes()).hexdigest() for codes in items)
        return fingerprint({}, self.fingerprint, *marks) if items else self.fingerprint


def load_federation(settings: Settings) -> Federation:
    """Reads, cleans, splits and partitions the data. Raises DataError."""
    data = settings.data
    interactions = clean(load_dataset(data.source, data.path), cleaning_of(settings)).log
    split = leave_one_out(interactions, data.protocol)
    clients = _partition(settings, split, interactions)
    if data.sampled_99:
        clients = tuple(replace(one, sampled=True) for one in clients)
    clients = tuple(with_catalogue(settings, one) for one in clients)
    return Federation(clients, split, interactions)


def with_catalogue(settings: Settings, data: ClientDataset) -> ClientDataset:
    """The client with the items that ``federation.catalogues`` lets it rank."""
    return with_own_catalogue(data) if settings.federation.catalogues == "own" else data


def cleaning_of(settings: Settings) -> Cleaning:
    """What is done to the log, whatever the partition: a central run sees the same."""
    data, federation = settings.data, settings.federation
    return Cleaning(
        column=federation.column,
        values=tuple(federation.values.replace(",", " ").split()),
        join_variants=data.join_variants,
        user_core=data.user_core,
        item_core=data.item_core,
    )


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
    if settings.algorithm.max_row_change:
        algorithm = with_row_clipping(algorithm, settings.algorithm.max_row_change)
    nobody = task.init_private(ClientDataset("", (), catalogue.item_ids))
    shapes = shapes_of({**task.init_shared(), **nobody})
    for rows in mode.private & set(ROW_NAMES):
        shapes[rows] = (len(catalogue.item_ids) + 1, *shapes[rows][1:])
    model = settings.model
    facts = (STATE_LAYOUT, model.encoder, model.items, settings.algorithm.name, mode.digest)
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
    start = {n: t for n, t in clone(dict(model.named_parameters())).items() if n != ITEMS}
    start = {**mode.shared, **start}
    return Task(
        apply=mode.head(make_apply(model)),
        noise_width=model.noise_width,
        partition=Partition.of([*start, *mode.private], private=lambda name: name in mode.private),
        init_shared=lambda: clone(start),
        init_private=mode.start,
        candidates=lambda d: torch.from_numpy(d.touched if mode.own_rows else d.catalogue),
        unseen_rows=mode.unseen_rows,
        effective=mode.effective,
        averaged=mode.averaged,
        soft_targets=_soft_targets(settings, catalogue, mode.texts),
    )


def _soft_targets(
    settings: Settings, catalogue: Catalogue, texts: Tensor | None
) -> SoftTargetsOf | None:
    """Those that train.semantic-share asks for, by the ``texts`` of the item mode where it has."""
    train = settings.train
    if not train.semantic_share or not catalogue.known:
        return None
    if train.negatives:
        raise SettingsError(
            "train.semantic-share with train.negatives: items that are not in the sample would "
            "share the next item's probability. Fix: train.negatives = 0."
        )
    return semantic_targets(
        text_vectors(settings, catalogue) if texts is None else texts,
        catalogue.item_ids,
        train.semantic_share,
        train.semantic_neighbours,
        train.semantic_temperature,
    )


def make_model(settings: Settings, num_items: int) -> NextItemModel:
    """The module, started from the run's seed; the global generator is left as it was."""
    model = settings.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(settings.run.seed, "model"))
        encoder = ENCODERS[model.encoder](model)
        return NextItemModel(num_items, model.embedding_dim, encoder, model.dropout)


def local_training(settings: Settings) -> LocalTraining:
    train = settings.train
    return LocalTraining(
        learning_rate=train.learning_rate,
        item_learning_rate=train.item_learning_rate,
        residual_learning_rate=train.residual_learning_rate,
        projection_learning_rate=train.projection_learning_rate,
        local_epochs=train.local_epochs,
        batch_size=train.batch_size,
        max_length=settings.model.max_length,
        seed=settings.run.seed,
        decay=train.round_decay,
        negatives=train.negatives,
        engine=train.engine,
        optimizer=train.optimizer,
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
        m.embedding_dim, m.num_layers, m.num_heads, m.max_length, m.dropout
    ),
    "gru4rec": lambda m: gru4rec_encoder(
        m.embedding_dim, m.num_layers, m.expand * m.embedding_dim, m.dropout
    ),
}


def _server_step(settings: Settings) -> ServerStep:
    algorithm = settings.algorithm
    return server_step(
        algorithm.server_optimizer,
        algorithm.server_learning_rate,
        algorithm.server_momentum,
        decay=algorithm.server_decay,
        epsilon=algorithm.server_epsilon,
    )


def _fed_avg(task: Task, settings: Settings) -> FederatedAlgorithm:
    power = settings.algorithm.weight_power
    step = _server_step(settings)
    return fed_avg(task, local_training(settings), step=step, weight_power=power)


def _fed_prox(task: Task, settings: Settings) -> FederatedAlgorithm:
    algorithm = settings.algorithm
    strength, power = algorithm.proximal_strength, algorithm.weight_power
    return fed_prox(task, local_training(settings), strength, power)


def _fecosr(task: Task, settings: Settings) -> FederatedAlgorithm:
    algorithm = settings.algorithm
    return fecosr(
        task,
        local_training(settings),
        finetuning=Finetuning(
            mode=algorithm.finetune_mode,
            epochs=algorithm.finetune_epochs,
            step=algorithm.finetune_step,
            safety_rule=algorithm.safety_rule,
        ),
        step=_server_step(settings),
        weight_power=algorithm.weight_power,
    )


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
        weight_power=algorithm.weight_power,
    )


def _pfedrec(task: Task, settings: Settings) -> FederatedAlgorithm:
    return pfedrec(task, scorer_training(settings), step=_server_step(settings))


ALGORITHMS: dict[str, Callable[[Task, Settings], FederatedAlgorithm]] = {
    "pfsr": _pfsr,
    "fed-avg": _fed_avg,
    "fed-prox": _fed_prox,
    "local-only": lambda task, settings: local_only(task, local_training(settings)),
    "pfedrec": _pfedrec,
    "fecosr": _fecosr,
}

TASKS: dict[str, Callable[[Settings, Sequence[str]], Task]] = {
    "pfedrec": lambda settings, item_ids: item_scorer_task(
        item_ids, settings.model.embedding_dim, settings.run.seed, settings.model.item_std
    )
}
"""Of the algorithms with a model of their own, whose item table is shared; the others train the
next-item model."""

ITEMS_OF: dict[str, tuple[str, str, str]] = {
    "pfedrec": (
        "shared",
        "averages the item table",
        "; which items clients have then reaches the server",
    ),
    "fecosr": ("adapted", "finetunes a market adapter", ""),
}
"""Of the algorithms with an item mode of their own: which, why, and what follows."""


def _check_items(name: str, settings: Settings) -> None:
    items = settings.model.items
    wanted, why, note = ITEMS_OF.get(name, (items, "", ""))
    if items != wanted:
        raise SettingsError(
            f"{name} {why}, but model.items = {items!r}. Fix: write model.items = {wanted!r}{note}."
        )
    if name in TASKS and settings.train.semantic_share:
        raise SettingsError(
            f"train.semantic-share with {name}, which predicts no next item. Fix: "
            f"train.semantic-share = 0."
        )
    if settings.algorithm.max_row_change and items not in ("shared", "dual"):
        raise SettingsError(
            f"algorithm.max-row-change bounds rows of an item table that is sent, but with "
            f"model.items = {items!r} none is. Fix: algorithm.max-row-change = 0.0."
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
