"""Encoders, compressors and algorithms by name, and what settings make of each.

The registries that a new one takes its line in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pfsr_core.algorithms.fecosr import Finetuning, fecosr
from pfsr_core.algorithms.fed_avg import fed_avg
from pfsr_core.algorithms.fed_prox import fed_prox
from pfsr_core.algorithms.local_only import local_only
from pfsr_core.algorithms.pfedrec import pfedrec
from pfsr_core.algorithms.pfsr import Magnitude, pfsr
from pfsr_core.algorithms.server_optimizers import ServerStep, server_step
from pfsr_core.algorithms.variable_response import Response
from pfsr_core.assembly.settings import Settings
from pfsr_core.federated.algorithm import FederatedAlgorithm
from pfsr_core.models.compressors import Compressor, LearnedTokens, RecurrentState, WholeHistory
from pfsr_core.models.encoders.associative_mamba import associative_encoder
from pfsr_core.models.encoders.attention_masks import AttentionEncoder
from pfsr_core.models.encoders.base import RecurrentEncoder, SequenceEncoder
from pfsr_core.models.encoders.gru4rec import gru4rec_encoder
from pfsr_core.models.encoders.hstu import hstu_encoder
from pfsr_core.models.encoders.mamba1 import mamba1_encoder
from pfsr_core.models.encoders.sasrec import sasrec_encoder
from pfsr_core.settings.fields import SettingsError
from pfsr_core.settings.sections import ModelSettings
from pfsr_core.training.item_scorer import ScorerTraining, item_scorer_task
from pfsr_core.training.local import LocalTraining
from pfsr_core.training.task import Task


def local_training(settings: Settings) -> LocalTraining:
    """How a client trains."""
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
    """How a client trains the item scorer."""
    algorithm = settings.algorithm
    local = local_training(settings)
    return ScorerTraining(local, algorithm.negatives_per_positive, algorithm.item_step)


def _associative(model: ModelSettings, anchored: bool) -> SequenceEncoder:
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


ENCODERS: dict[str, Callable[[ModelSettings], SequenceEncoder]] = {
    "associative-mamba": lambda m: _associative(m, anchored=True),
    "mamba": lambda m: _associative(m, anchored=False),
    "mamba1": lambda m: mamba1_encoder(
        m.embedding_dim,
        m.num_layers,
        state_dim=m.state_dim,
        conv_width=m.conv_width,
        expand=m.expand,
        dropout=m.dropout,
    ),
    "sasrec": lambda m: sasrec_encoder(
        m.embedding_dim, m.num_layers, m.num_heads, m.max_length, m.dropout, extra=_memory_tokens(m)
    ),
    "hstu": lambda m: hstu_encoder(
        m.embedding_dim, m.num_layers, m.num_heads, m.max_length, m.dropout
    ),
    "gru4rec": lambda m: gru4rec_encoder(
        m.embedding_dim, m.num_layers, m.expand * m.embedding_dim, m.dropout
    ),
}


def _memory_tokens(model: ModelSettings) -> int:
    return model.tokens if model.compressor == "tokens" else 0


def _whole_history(model: ModelSettings, _encoder: SequenceEncoder) -> Compressor:
    if model.personal_memory:
        raise SettingsError(
            "model.personal-memory needs a memory. Fix: model.compressor = 'tokens' or 'state'."
        )
    return WholeHistory()


def _tokens(model: ModelSettings, encoder: SequenceEncoder) -> Compressor:
    if not isinstance(encoder, AttentionEncoder):
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


def _state(model: ModelSettings, encoder: SequenceEncoder) -> Compressor:
    if not isinstance(encoder, RecurrentEncoder):
        raise SettingsError(
            f"model.compressor = 'state' with the encoder {model.encoder!r}: attention's state "
            f"grows with the history. Fix: model.compressor = 'tokens', or a recurrent encoder."
        )
    return RecurrentState(encoder, model.personal_memory)


IDENTITY = "identity"
COMPRESSORS: dict[str, Callable[[ModelSettings, SequenceEncoder], Compressor]] = {
    IDENTITY: _whole_history,
    "tokens": _tokens,
    "state": _state,
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
    return fed_prox(
        task,
        local_training(settings),
        algorithm.proximal_strength,
        step=_server_step(settings),
        weight_power=algorithm.weight_power,
    )


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
