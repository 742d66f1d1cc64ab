"""Item modes: how a client comes by the vectors of its items, and which part of that it shares.

    private    a table of the client's own items, which stays on the client
    shared     a table of the catalogue, averaged
    dual       that table plus a private residual on the rows of the client's own items
    semantic   ``W t_i`` plus such a residual: ``t_i`` is a public vector of the item that nobody
               sends, and the projection ``W`` is shared, so no row of any item leaves a client
    adapted    ``W t_i`` under a private market adapter (:mod:`pfsr_core.items.adapter`) in place
               of a residual: a scale, residuals of low rank and a bias for each own item

Residuals and adapters start at zero (dual personalization: Zhang et al., IJCAI 2023, here of a
sequence model). With "dual", "semantic" and "adapted" every item of the catalogue has a vector, so
every one can be ranked. A client with a catalogue of its own has the rows of that, of whatever all
clients share.

A public vector is the item's text vector beside numbers that are drawn from its raw id, which tell
items of like texts apart: ``t_i = [text ; weight * random] / length``.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pfsr_core.assembly.settings import Settings
from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.items.adapter import adapt, first_adapter, memory_with_bias, with_bias
from pfsr_core.items.tables import (
    OWN_ROWS,
    add_rows,
    co_occurrence_start,
    common_item_table,
    mean_length,
    table_rows,
    unit_rows,
)
from pfsr_core.items.text_vectors import CO_OCCURRENCE, ItemVectors, item_vectors
from pfsr_core.models.next_item import Apply, Compress, Recall
from pfsr_core.models.parameter_names import ITEMS, PROJECTION, RESIDUAL
from pfsr_core.params import Params
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.fields import SettingsError

ItemStart = Callable[[ClientDataset, ItemArray, Sequence[ItemArray]], Tensor]
"""(client, item codes (n,), histories of these items) -> the rows (n, D) they start with."""
Change = Callable[[Tensor, Params, Tensor], Tensor]
"""(table (V + 1, D), whole parameters, codes of the private rows) -> the table changed by them"""


@dataclass(frozen=True)
class Catalogue:
    """All items: raw ids by code, and words about each, "" where none are known.

    A server that owns no data knows neither: ``known`` is False then, and only shapes are right.
    ``histories``: training histories of all clients, where they are in one place. ``vectors``: item
    vectors that were made before, in place of all of these.
    """

    item_ids: tuple[str, ...]
    texts: tuple[str, ...] = ()
    known: bool = True
    histories: Sequence[ItemArray] = field(default=(), compare=False, repr=False)
    vectors: ItemVectors | None = None


def unchanged(apply: Apply) -> Apply:
    """The model as it is."""
    return apply


def unchanged_memory(compress: Compress, recall: Recall) -> tuple[Compress, Recall]:
    """What serves from a memory as it is."""
    return compress, recall


@dataclass(frozen=True)
class ItemMode:
    """One of the modes over one catalogue.

    ``shared``: its tensors that are averaged, at their start. ``private``: the names of those that
    stay. ``start(data)``: these at their start; those of ROW_NAMES have the rows of the client's
    own items.
    ``table(params, rows)``: the item vectors (V' + 1, D) of a client's whole parameters, ``rows``
    being those of :func:`pfsr_core.items.tables.item_rows`.
    ``own_rows``: whether a client ranks the items its users touched only.
    ``unseen_rows(data, codes)`` (n, D): what items without a row start with.
    ``averaged``: shared names that no mask of an algorithm keeps local.
    ``texts`` (V + 1, S): text vectors by item code, where it has them.
    ``digest``: what it was made from besides the settings; ``method`` as of ItemVectors.
    ``head``, ``memory_head``: what turns the model, and what serves from a memory, into those for
    its tables.
    """

    shared: Params
    private: frozenset[str]
    start: Callable[[ClientDataset], Params]
    table: Callable[[Params, Params], Tensor]
    own_rows: bool
    unseen_rows: Callable[[ClientDataset, ItemArray], Tensor]
    averaged: frozenset[str] = frozenset()
    digest: str = ""
    method: str = ""
    texts: Tensor | None = None
    head: Callable[[Apply], Apply] = unchanged
    memory_head: Callable[[Compress, Recall], tuple[Compress, Recall]] = unchanged_memory

    def effective(self, params: Params, rows: Params) -> Params:
        """A client's whole parameters as the model takes them: one table of item vectors."""
        own = {*self.shared, *self.private}
        rest = {name: tensor for name, tensor in params.items() if name not in own}
        return {ITEMS: self.table(params, rows), **rest}


def item_mode(settings: Settings, catalogue: Catalogue) -> ItemMode:
    """The mode that ``model.items`` names. Raises DataError where item vectors are missing."""
    return ITEM_MODES[settings.model.items](settings, catalogue)


def _private(settings: Settings, catalogue: Catalogue) -> ItemMode:
    start_of = _item_start(settings, _common_table(settings, catalogue))

    def start(data: ClientDataset) -> Params:
        histories = [user.train for user in data.users]
        return {ITEMS: _padded(start_of(data, data.touched, histories))}

    return ItemMode(
        shared={},
        private=frozenset({ITEMS}),
        start=start,
        table=lambda params, _rows: params[ITEMS],
        own_rows=True,
        unseen_rows=lambda data, codes: start_of(data, codes, []),
    )


def _add_residual(table: Tensor, params: Params, codes: Tensor) -> Tensor:
    return add_rows(table, params[RESIDUAL], codes)


def _shared(settings: Settings, catalogue: Catalogue) -> ItemMode:
    table = _common_table(settings, catalogue)
    return ItemMode(
        shared={ITEMS: table},
        private=frozenset(),
        start=lambda _data: {},
        table=lambda params, rows: table_rows(params[ITEMS], rows),
        own_rows=False,
        unseen_rows=lambda _data, codes: table[torch.from_numpy(codes)],
        averaged=frozenset({ITEMS}),
    )


def _dual(settings: Settings, catalogue: Catalogue) -> ItemMode:
    if settings.train.negatives:
        raise SettingsError(
            "train.negatives with model.items = 'dual': of a shared table only the rows of the "
            "history and of the sample would move, which tells a history. Fix: train.negatives = 0."
        )
    shared = _shared(settings, catalogue)
    return replace(
        shared,
        private=frozenset({RESIDUAL}),
        start=_zero_residual(settings),
        table=lambda params, rows: _add_residual(
            shared.table(params, rows), params, rows[OWN_ROWS]
        ),
    )


def _semantic(settings: Settings, catalogue: Catalogue, change: Change = _add_residual) -> ItemMode:
    """``change`` is what the private part does to the projected vectors."""
    model, width = settings.model, settings.model.text_dim + settings.model.id_dim
    found = _item_vectors(settings, catalogue) if catalogue.known else None
    public, texts = torch.zeros(len(catalogue.item_ids) + 1, width), None
    if found is not None:
        texts = _padded(torch.from_numpy(found.rows))
        numbers = common_item_table(catalogue.item_ids, model.id_dim, 0, 1.0)
        public = _public_vectors(texts, numbers, model.id_weight)
    generator = torch.Generator().manual_seed(stream_seed(settings.run.seed, "projection"))
    start = torch.randn(model.embedding_dim, width, generator=generator) * model.item_std

    def table(params: Params, rows: Params) -> Tensor:
        projection = params[PROJECTION]
        vectors = table_rows(public, rows).to(projection.dtype) @ projection.T
        return change(vectors, params, rows[OWN_ROWS])

    return ItemMode(
        shared={PROJECTION: start},
        private=frozenset({RESIDUAL}),
        start=_zero_residual(settings),
        table=table,
        own_rows=False,
        unseen_rows=lambda _data, codes: public[torch.from_numpy(codes)] @ start.T,
        averaged=frozenset({PROJECTION}),
        digest="" if found is None else found.digest,
        method="" if found is None else found.method,
        texts=texts,
    )


def _adapted(settings: Settings, catalogue: Catalogue) -> ItemMode:
    semantic, model = _semantic(settings, catalogue, adapt), settings.model
    seed = stream_seed(settings.run.seed, "adapter")

    def adapter(items: int) -> Params:
        return first_adapter(items + 1, model.embedding_dim, model.adapter_rank, seed)

    def unseen(data: ClientDataset, codes: ItemArray) -> Tensor:
        rows = semantic.unseen_rows(data, codes)
        return torch.cat([rows, rows.new_zeros(len(rows), 1)], dim=1)

    return replace(
        semantic,
        private=frozenset(adapter(0)),
        start=lambda data: adapter(len(data.touched)),
        unseen_rows=unseen,
        head=with_bias,
        memory_head=memory_with_bias,
    )


ITEM_MODES: dict[str, Callable[[Settings, Catalogue], ItemMode]] = {
    "private": _private,
    "shared": _shared,
    "dual": _dual,
    "semantic": _semantic,
    "adapted": _adapted,
}


def text_vectors(settings: Settings, catalogue: Catalogue) -> Tensor:
    """Text vectors by item code, zeros for padding: (V + 1, S). Raises DataError without texts."""
    return _padded(torch.from_numpy(_item_vectors(settings, catalogue).rows))


def _item_vectors(settings: Settings, catalogue: Catalogue) -> ItemVectors:
    if catalogue.vectors is not None:
        return catalogue.vectors
    model, ids = settings.model, catalogue.item_ids
    texts = catalogue.texts or ("",) * len(ids)
    return item_vectors(model.item_vectors, ids, texts, model.text_dim, catalogue.histories)


def pooled_vectors(settings: Settings, catalogue: Catalogue) -> ItemVectors | None:
    """Those that cannot be made again where a model is served; None where others are asked for."""
    pooled = settings.model.item_vectors == CO_OCCURRENCE
    return _item_vectors(settings, catalogue) if pooled else None


def _public_vectors(texts: Tensor, numbers: Tensor, weight: float) -> Tensor:
    """``[text ; weight * random]`` of length 1, both halves of length 1 before: (V + 1, S)."""
    halves = torch.cat([texts, weight * unit_rows(numbers)], dim=1)
    return unit_rows(halves)


def _padded(rows: Tensor) -> Tensor:
    """``rows`` after the padding row."""
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])


def _zero_residual(settings: Settings) -> Callable[[ClientDataset], Params]:
    dim = settings.model.embedding_dim
    return lambda data: {RESIDUAL: torch.zeros(len(data.touched) + 1, dim)}


def _common_table(settings: Settings, catalogue: Catalogue) -> Tensor:
    model = settings.model
    return common_item_table(
        catalogue.item_ids, model.embedding_dim, settings.run.seed, model.item_std
    )


def _item_start(settings: Settings, table: Tensor) -> ItemStart:
    """How the rows of private tables start; ``table`` (V + 1, D) is the common start."""
    kind, dim, seed = settings.model.item_start, table.shape[1], settings.run.seed
    std, length = settings.model.item_std, mean_length(table)

    def start(data: ClientDataset, items: ItemArray, histories: Sequence[ItemArray]) -> Tensor:
        if kind == "secret":
            names = [data.item_ids[code - 1] for code in items]
            return common_item_table(names, dim, private_seed(data, seed), std)[1:]
        if kind == "co-occurrence":
            return co_occurrence_start(table, length, items, histories)
        return table[torch.from_numpy(items)]

    return start


def private_seed(data: ClientDataset, seed: int) -> int:
    """A seed that follows from the client's secret, HMAC-SHA256(secret, purpose and client).

    On the plain loop nobody has a secret: there the run's seed stands for it, so that experiments
    repeat. It is then no protection, and none is needed.
    """
    key = data.secret or f"no node, seed {seed}".encode()
    digest = hmac.digest(key, f"item table of {data.client}".encode(), "sha256")
    return int.from_bytes(digest[:8], "little")
