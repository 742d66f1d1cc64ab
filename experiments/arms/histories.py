"""What of a long history is worth reading: the arms of compressed and cut histories.

Attention over 200 items, over the latest 50, and over 50 with tokens in place of the 150 before
them, the tokens the same for everybody or with a part of each user's own; recurrent encoders that
read the latest 50, or all that there is, trained on windows of 200 or of 50. A window begins with
an empty state, so the last two differ in how far gradients reach back, and in cost. All data in one
place, and averaged over 20 clients; on the recipe's data, also with items made from words about
them, and on a world in which the oldest items decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from pfsr_core.items.text_vectors import WORDLLAMA
from pfsr_core.runs.local import ALL_DATA, ONE_CLIENT
from pfsr_core.settings.fields import Value

Overrides = dict[str, Value]

LONG, RECENT = 200, 50  # items read of a history; those of them that stay uncompressed

READS_ALL: Overrides = {"model.max-length": LONG}
READS_RECENT: Overrides = {"model.max-length": RECENT}
ATTENTION: Overrides = {"model.encoder": "sasrec", "model.num-heads": 2}
TOKENS: Overrides = {**ATTENTION, **READS_ALL, "model.compressor": "tokens", "model.recent": RECENT}
STATE: Overrides = {**READS_ALL, "model.compressor": "state", "model.num-layers": 1}
OWN: Overrides = {"model.personal-memory": True}

KINDS: dict[str, Overrides] = {
    "sasrec reads 200": {**ATTENTION, **READS_ALL},
    "sasrec reads 50": {**ATTENTION, **READS_RECENT},
    "sasrec with tokens": TOKENS,
    "sasrec with tokens of its own": {**TOKENS, **OWN},
    "gru4rec reads 50": {"model.encoder": "gru4rec", "model.num-layers": 1, **READS_RECENT},
    "gru4rec's state": {"model.encoder": "gru4rec", **STATE},
    "gru4rec's state, trained on 50": {"model.encoder": "gru4rec", **STATE, **READS_RECENT},
    "associative reads 50": {"model.num-layers": 1, **READS_RECENT},
    "associative state": STATE,
    "associative state, trained on 50": {**STATE, **READS_RECENT},
    "associative state of its own start": {**STATE, **OWN},
}
CENTRAL: Overrides = {**ALL_DATA, **ONE_CLIENT, "federation.rounds": 15}
FEDERATED: Overrides = {
    "federation.clients": 20,
    "federation.rounds": 12,
    "model.items": "shared",
    "model.item-start": "common",
    "model.item-std": 0.02,
    "model.dropout": 0.2,
    "train.learning-rate": 0.006,
    "train.item-learning-rate": 0.006,
    "train.local-epochs": 2,
    "train.round-decay": 0.9,
    "algorithm.name": "fed-avg",
}
# HLLM: a language model reads the words about an item, or they are counted; one projection of that
# is the item, together with a vector that is learnt, or alone.
TEXT: Overrides = {
    "model.items": "semantic",
    "model.text-dim": 256,
    "model.id-dim": 0,
    "train.residual-learning-rate": 0.002,
}
READ: Overrides = {**TEXT, "model.item-vectors": WORDLLAMA}
ALONE: Overrides = {"train.residual-learning-rate": 0.0}
# Histories of 160 to 192 items, all read; many steps, large enough that what is rare is learnt.
OLDEST_DECIDE: Overrides = {
    "data.source": "synthetic-long",
    "data.path": "users=400,length=160",
    "federation.rounds": 40,
    "model.dropout": 0.1,
    "train.learning-rate": 0.004,
    "train.item-learning-rate": 0.004,
}


@dataclass(frozen=True)
class Place:
    """Where models read histories. ``batch``: windows of LONG items in a batch.

    ``long_from``: items from which on a history is a long one.
    """

    settings: Overrides
    batch: int
    long_from: int = LONG


# Few windows in a batch on a client that has few, and where many steps are wanted.
PLACES: dict[str, Place] = {
    "histories, central": Place(CENTRAL, batch=16),
    "histories, fed-avg": Place(FEDERATED, batch=4),
    "histories, central, tf-idf": Place({**CENTRAL, **TEXT}, batch=16),
    "histories, central, tf-idf alone": Place({**CENTRAL, **TEXT, **ALONE}, batch=16),
    "histories, central, wordllama": Place({**CENTRAL, **READ}, batch=16),
    "histories, central, wordllama alone": Place({**CENTRAL, **READ, **ALONE}, batch=16),
    "histories, central, oldest decide": Place({**CENTRAL, **OLDEST_DECIDE}, batch=8, long_from=0),
}


def history_arms() -> dict[str, Overrides]:
    """``<one of PLACES>, <one of KINDS>``: settings by arm."""
    return {
        f"{place}, {kind}": {**of_place.settings, **of_kind, **_batch(of_place, of_kind)}
        for place, of_place in PLACES.items()
        for kind, of_kind in KINDS.items()
    }


def _batch(place: Place, of_kind: Overrides) -> Overrides:
    """A window of LONG items is four of 50: batches of as many positions take steps as often."""
    windows = LONG // int(of_kind["model.max-length"])
    return {"train.batch-size": place.batch * windows}
