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


def labels_of(method: str) -> Labels:
    """How reports write about a method of a run; of a baseline, as about any next-item model."""
    return ALGORITHMS[method].labels if method in ALGORITHMS else Labels()
