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

from pfsr_core.data.client_dataset import ClientDataset, ItemArray
from pfsr_core.items.adapter import adapt, first_adapter, memory_with_bias, with_bias
from pfsr_core.items.functions import ItemFunctions, all_candidates, own_candidates
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
from pfsr_core.models.next_item import Apply, Compress, ContinueFrom
from pfsr_core.models.parameter_names import ITEMS, PROJECTION, RESIDUAL
from pfsr_core.params import Params
from pfsr_core.randomness import stream_seed
from pfsr_core.settings.sections import ModelSettings

ItemStart = Callable[[ClientDataset, ItemArray, Sequence[ItemArray]], Tensor]
"""(client, item codes (n,), histories of these items) -> the rows (n, D) they start with."""
Change = Callable[[Tensor, Params, Tensor], Tensor]
"""(table (V + 1, D), merged parameters, codes of the private rows) -> the table changed by them"""
Table = Callable[[Params, Params], Tensor]
"""(merged parameters, item index) -> the item vectors (V' + 1, D) of a client"""


@dataclass(frozen=True)
class ItemCatalogue:
    """All items of a federation.

    Attributes:
        item_ids: Raw ids by code.
        texts: Words about each item, "" where none are known.
        known: False on a server that owns no data, and knows neither: only shapes are right then.
        histories: Training histories of all clients, where they are in one place.
        vectors: Item vectors that were made before, in place of all of these.
    """

    item_ids: tuple[str, ...]
    texts: tuple[str, ...] = ()
    known: bool = True
    histories: Sequence[ItemArray] = field(default=(), compare=False, repr=False)
    vectors: ItemVectors | None = None


def identity(apply: Apply) -> Apply:
    """The model as it is."""
    return apply


def identity_memory(
    compress: Compress, continue_from: ContinueFrom
) -> tuple[Compress, ContinueFrom]:
    """What serves from a memory as it is."""
    return compress, continue_from


@dataclass(frozen=True)
class ItemParams:
    """The tensors of a mode, and where they start.

    Attributes:
        shared: The tensors that are averaged, at their start.
        private: The names of those that stay.
        start: ``(data)`` to the private ones at their start; those of ROW_NAMES have the rows of
            the client's own items.
    """

    shared: Params
    private: frozenset[str]
    start: Callable[[ClientDataset], Params]


@dataclass(frozen=True)
class ItemSource:
    """What a mode's public item vectors were made from.

    ``digest``: of what it was made from besides the settings; ``method`` as of ItemVectors; both ""
    without such vectors. ``texts`` (V + 1, S): text vectors by item code, where it has them.
    """

    digest: str = ""
    method: str = ""
    texts: Tensor | None = None


@dataclass(frozen=True)
class ItemHead:
    """What turns a model, and what serves from a memory, into those for a mode's tables."""

    apply: Callable[[Apply], Apply] = identity
    memory: Callable[[Compress, ContinueFrom], tuple[Compress, ContinueFrom]] = identity_memory


@dataclass(frozen=True)
class ItemMode:
    """One of the modes over one catalogue."""

    params: ItemParams
    functions: ItemFunctions
    source: ItemSource = ItemSource()
    head: ItemHead = ItemHead()


def item_mode(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> ItemMode:
    """The mode that ``model.items`` names. Raises DataError where item vectors are missing."""
    return ITEM_MODES[model.items](model, seed, catalogue)


def _materialize(params: ItemParams, table: Table) -> Callable[[Params, Params], Params]:
    """The tensors of a mode replaced by the one ``table`` that they make."""
    own = {*params.shared, *params.private}

    def materialize(merged: Params, item_index: Params) -> Params:
        rest = {name: tensor for name, tensor in merged.items() if name not in own}
        return {ITEMS: table(merged, item_index), **rest}

    return materialize


def _private(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> ItemMode:
    start_of = _item_start(model, seed, _common_table(model, seed, catalogue))

    def start(data: ClientDataset) -> Params:
        histories = [user.train for user in data.users]
        return {ITEMS: _padded(start_of(data, data.touched, histories))}

    params = ItemParams({}, frozenset({ITEMS}), start)
    functions = ItemFunctions(
        candidates=own_candidates,
        unseen_rows=lambda data, codes: start_of(data, codes, []),
        materialize=_materialize(params, lambda merged, _index: merged[ITEMS]),
    )
    return ItemMode(params, functions)


def _shared_table(params: Params, item_index: Params) -> Tensor:
    return table_rows(params[ITEMS], item_index)


def _add_residual(table: Tensor, params: Params, codes: Tensor) -> Tensor:
    return add_rows(table, params[RESIDUAL], codes)


def _shared(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> ItemMode:
    table = _common_table(model, seed, catalogue)
    params = ItemParams({ITEMS: table}, frozenset(), lambda _data: {})
    functions = ItemFunctions(
        candidates=all_candidates,
        unseen_rows=lambda _data, codes: table[torch.from_numpy(codes)],
        materialize=_materialize(params, _shared_table),
        averaged=frozenset({ITEMS}),
    )
    return ItemMode(params, functions)


def _dual(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> ItemMode:
    def table(params: Params, item_index: Params) -> Tensor:
        shared_rows = _shared_table(params, item_index)
        return _add_residual(shared_rows, params, item_index[OWN_ROWS])

    shared = _shared(model, seed, catalogue)
    params = replace(shared.params, private=frozenset({RESIDUAL}), start=_zero_residual(model))
    functions = replace(shared.functions, materialize=_materialize(params, table))
    return ItemMode(params, functions)


def _semantic(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> ItemMode:
    residual = ItemParams({}, frozenset({RESIDUAL}), _zero_residual(model))
    return _projected(model, seed, catalogue, residual, _add_residual)


def _projected(
    model: ModelSettings, seed: int, catalogue: ItemCatalogue, private: ItemParams, change: Change
) -> ItemMode:
    """Projected public vectors; ``change`` is what the ``private`` part does to them."""
    width = model.text_dim + model.id_dim
    found = _item_vectors(model, catalogue) if catalogue.known else None
    public, source = torch.zeros(len(catalogue.item_ids) + 1, width), ItemSource()
    if found is not None:
        texts = _padded(torch.from_numpy(found.rows))
        numbers = common_item_table(catalogue.item_ids, model.id_dim, 0, 1.0)
        public = _public_vectors(texts, numbers, model.id_weight)
        source = ItemSource(found.digest, found.method, texts)
    generator = torch.Generator().manual_seed(stream_seed(seed, "projection"))
    start = torch.randn(model.embedding_dim, width, generator=generator) * model.item_std

    def table(params: Params, item_index: Params) -> Tensor:
        projection = params[PROJECTION]
        vectors = table_rows(public, item_index).to(projection.dtype) @ projection.T
        return change(vectors, params, item_index[OWN_ROWS])

    params = replace(private, shared={PROJECTION: start})
    functions = ItemFunctions(
        candidates=all_candidates,
        unseen_rows=lambda _data, codes: public[torch.from_numpy(codes)] @ start.T,
        materialize=_materialize(params, table),
        averaged=frozenset({PROJECTION}),
    )
    return ItemMode(params, functions, source)


def _adapted(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> ItemMode:
    adapter_seed = stream_seed(seed, "adapter")

    def adapter(items: int) -> Params:
        return first_adapter(items + 1, model.embedding_dim, model.adapter_rank, adapter_seed)

    private = ItemParams({}, frozenset(adapter(0)), lambda data: adapter(len(data.touched)))
    mode = _projected(model, seed, catalogue, private, adapt)

    def unseen(data: ClientDataset, codes: ItemArray) -> Tensor:
        rows = mode.functions.unseen_rows(data, codes)
        return torch.cat([rows, rows.new_zeros(len(rows), 1)], dim=1)

    functions = replace(mode.functions, unseen_rows=unseen)
    return replace(mode, functions=functions, head=ItemHead(with_bias, memory_with_bias))


ITEM_MODES: dict[str, Callable[[ModelSettings, int, ItemCatalogue], ItemMode]] = {
    "private": _private,
    "shared": _shared,
    "dual": _dual,
    "semantic": _semantic,
    "adapted": _adapted,
}


def text_vectors(model: ModelSettings, catalogue: ItemCatalogue) -> Tensor:
    """Text vectors by item code, zeros for padding: (V + 1, S). Raises DataError without texts."""
    return _padded(torch.from_numpy(_item_vectors(model, catalogue).rows))


def _item_vectors(model: ModelSettings, catalogue: ItemCatalogue) -> ItemVectors:
    if catalogue.vectors is not None:
        return catalogue.vectors
    ids = catalogue.item_ids
    texts = catalogue.texts or ("",) * len(ids)
    return item_vectors(model.item_vectors, ids, texts, model.text_dim, catalogue.histories)


def pooled_vectors(model: ModelSettings, catalogue: ItemCatalogue) -> ItemVectors | None:
    """Those that cannot be made again where a model is served; None where others are asked for."""
    pooled = model.item_vectors == CO_OCCURRENCE
    return _item_vectors(model, catalogue) if pooled else None


def _public_vectors(texts: Tensor, numbers: Tensor, weight: float) -> Tensor:
    """``[text ; weight * random]`` of length 1, both halves of length 1 before: (V + 1, S)."""
    halves = torch.cat([texts, weight * unit_rows(numbers)], dim=1)
    return unit_rows(halves)


def _padded(rows: Tensor) -> Tensor:
    """``rows`` after the padding row."""
    return torch.cat([rows.new_zeros(1, rows.shape[1]), rows])


def _zero_residual(model: ModelSettings) -> Callable[[ClientDataset], Params]:
    dim = model.embedding_dim
    return lambda data: {RESIDUAL: torch.zeros(len(data.touched) + 1, dim)}


def _common_table(model: ModelSettings, seed: int, catalogue: ItemCatalogue) -> Tensor:
    return common_item_table(catalogue.item_ids, model.embedding_dim, seed, model.item_std)


def _item_start(model: ModelSettings, seed: int, table: Tensor) -> ItemStart:
    """How the rows of private tables start; ``table`` (V + 1, D) is the common start."""
    kind, dim = model.item_start, table.shape[1]
    std, length = model.item_std, mean_length(table)

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
