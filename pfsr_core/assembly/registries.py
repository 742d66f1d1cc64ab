"""The registries: encoders, compressors and algorithms by name. A new one takes a line here."""

from __future__ import annotations

from collections.abc import Callable

from pfsr_core.algorithms.ditto import DITTO
from pfsr_core.algorithms.fecosr import FECOSR
from pfsr_core.algorithms.fed_avg import FED_AVG
from pfsr_core.algorithms.fed_prox import FED_PROX
from pfsr_core.algorithms.local_only import LOCAL_ONLY
from pfsr_core.algorithms.pfedrec import PFEDREC
from pfsr_core.algorithms.pfsr import PFSR
from pfsr_core.algorithms.spec import AlgorithmSpec, Labels
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


def _associative(model_settings: ModelSettings, anchored: bool) -> SequenceEncoder:
    return associative_encoder(
        model_settings.embedding_dim,
        num_layers=model_settings.num_layers,
        state_dim=model_settings.state_dim,
        conv_width=model_settings.conv_width,
        expand=model_settings.expand,
        num_heads=model_settings.num_heads,
        dropout_rate=model_settings.dropout,
        anchored=anchored,
    )


ENCODERS: dict[str, Callable[[ModelSettings], SequenceEncoder]] = {
    "associative-mamba": lambda model: _associative(model, anchored=True),
    "mamba": lambda model: _associative(model, anchored=False),
    "mamba1": lambda model: mamba1_encoder(
        model.embedding_dim,
        model.num_layers,
        state_dim=model.state_dim,
        conv_width=model.conv_width,
        expand=model.expand,
        dropout_rate=model.dropout,
    ),
    "sasrec": lambda model: sasrec_encoder(
        model.embedding_dim,
        model.num_layers,
        model.num_heads,
        model.max_length,
        model.dropout,
        extra_positions=_memory_tokens(model),
    ),
    "hstu": lambda model: hstu_encoder(
        model.embedding_dim, model.num_layers, model.num_heads, model.max_length, model.dropout
    ),
    "gru4rec": lambda model: gru4rec_encoder(
        model.embedding_dim, model.num_layers, model.expand * model.embedding_dim, model.dropout
    ),
}


def _memory_tokens(model_settings: ModelSettings) -> int:
    return model_settings.tokens if model_settings.compressor == "tokens" else 0


def _whole_history(model_settings: ModelSettings, _encoder: SequenceEncoder) -> Compressor:
    if model_settings.personal_memory:
        raise SettingsError(
            "model.personal-memory needs a memory. Fix: model.compressor = 'tokens' or 'state'."
        )
    return WholeHistory()


def _tokens(model_settings: ModelSettings, encoder: SequenceEncoder) -> Compressor:
    if not isinstance(encoder, AttentionEncoder):
        raise SettingsError(
            f"model.compressor = 'tokens' with the encoder {model_settings.encoder!r}: tokens need "
            f"attention. Fix: model.encoder = 'sasrec' or 'hstu', or model.compressor = 'state'."
        )
    if model_settings.recent >= model_settings.max_length:
        raise SettingsError(
            f"model.recent = {model_settings.recent} leaves nothing to compress of "
            f"model.max-length = {model_settings.max_length}. Fix: make it smaller."
        )
    return LearnedTokens(
        model_settings.embedding_dim,
        model_settings.tokens,
        model_settings.recent,
        model_settings.personal_memory,
    )


def _state(model_settings: ModelSettings, encoder: SequenceEncoder) -> Compressor:
    if not isinstance(encoder, RecurrentEncoder):
        raise SettingsError(
            f"model.compressor = 'state' with the encoder {model_settings.encoder!r}: "
            f"attention's state grows with the history. Fix: model.compressor = 'tokens', or a "
            f"recurrent encoder."
        )
    return RecurrentState(encoder, model_settings.personal_memory)


IDENTITY = "identity"
COMPRESSORS: dict[str, Callable[[ModelSettings, SequenceEncoder], Compressor]] = {
    IDENTITY: _whole_history,
    "tokens": _tokens,
    "state": _state,
}


ALGORITHMS: dict[str, AlgorithmSpec] = {
    "pfsr": PFSR,
    "fed-avg": FED_AVG,
    "fed-prox": FED_PROX,
    "ditto": DITTO,
    "local-only": LOCAL_ONLY,
    "pfedrec": PFEDREC,
    "fecosr": FECOSR,
}
"""Federated algorithms by name; settings, checks and reports ask here what one needs and says."""


def labels_of(method_name: str) -> Labels:
    """How reports write about a method of a run; of a baseline, as about any next-item model."""
    return ALGORITHMS[method_name].labels if method_name in ALGORITHMS else Labels()
