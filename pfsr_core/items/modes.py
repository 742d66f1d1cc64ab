"""Item modes: how a client comes by the vectors of its items, and which part of that it shares.

    private    a table of the client's own items, which stays on the client
    shared     a table of the catalogue, averaged
    dual       that table plus a private residual on the rows of the client's own items
    semantic   ``W t_i`` plus such a residual: ``t_i`` is a public vector of the item that is
               never sent, and the projection ``W`` is shared, so no row of any item leaves a client
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
        vectors: Item vectors made before, used instead of all of these.
    """

    item_ids: tuple[str, ...]
    texts: tuple[str, ...] = ()
    known: bool = True
    histories: Sequence[ItemArray] = field(default=(), compare=False, repr=False)
    vectors: ItemVectors | None = None


def identity(apply: Apply) -> Apply:
    """Returns the model unchanged."""
    return apply


def identity_memory(
    compress: Compress, continue_from: ContinueFrom
) -> tuple[Compress, ContinueFrom]:
    """Returns both serving functions unchanged."""
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
    """Wrappers of a model and of its serving functions that fit them to a mode's item table."""

    apply: Callable[[Apply], Apply] = identity
    memory: Callable[[Compress, ContinueFrom], tuple[Compress, ContinueFrom]] = identity_memory


@dataclass(frozen=True)
class ItemMode:
    """One of the modes over one catalogue."""

    params: ItemParams
    functions: ItemFunctions
    source: ItemSource = ItemSource()
    head: ItemHead = ItemHead()


def item_mode(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> ItemMode:
    """The item mode that the settings name.

    Args:
        model_settings: Their ``items`` names the mode.
        run_seed: Seed of the run, from which tables and projections start.
        catalogue: All items of the federation.

    Raises:
        DataError: Item vectors that the mode needs are missing.
    """
    return ITEM_MODES[model_settings.items](model_settings, run_seed, catalogue)


def _materialize(item_params: ItemParams, make_table: Table) -> Callable[[Params, Params], Params]:
    """Replaces the tensors of a mode by the item table that ``make_table`` builds of them."""
    own_names = {*item_params.shared, *item_params.private}

    def materialize(merged_params: Params, item_index: Params) -> Params:
        model_params = {
            name: tensor for name, tensor in merged_params.items() if name not in own_names
        }
        return {ITEMS: make_table(merged_params, item_index), **model_params}

    return materialize


def _private(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> ItemMode:
    start_of = _item_start(
        model_settings, run_seed, _common_table(model_settings, run_seed, catalogue)
    )

    def start(client_data: ClientDataset) -> Params:
        histories = [user.train for user in client_data.users]
        return {ITEMS: _padded(start_of(client_data, client_data.touched, histories))}

    item_params = ItemParams({}, frozenset({ITEMS}), start)
    item_functions = ItemFunctions(
        candidates=own_candidates,
        unseen_rows=lambda data, item_codes: start_of(data, item_codes, []),
        materialize=_materialize(item_params, lambda merged_params, _index: merged_params[ITEMS]),
    )
    return ItemMode(item_params, item_functions)


def _shared_table(merged_params: Params, item_index: Params) -> Tensor:
    return table_rows(merged_params[ITEMS], item_index)


def _add_residual(table: Tensor, merged_params: Params, item_codes: Tensor) -> Tensor:
    return add_rows(table, merged_params[RESIDUAL], item_codes)


def _shared(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> ItemMode:
    table = _common_table(model_settings, run_seed, catalogue)
    item_params = ItemParams({ITEMS: table}, frozenset(), lambda _data: {})
    item_functions = ItemFunctions(
        candidates=all_candidates,
        unseen_rows=lambda _data, item_codes: table[torch.from_numpy(item_codes)],
        materialize=_materialize(item_params, _shared_table),
        averaged=frozenset({ITEMS}),
    )
    return ItemMode(item_params, item_functions)


def _dual(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> ItemMode:
    def table(merged_params: Params, item_index: Params) -> Tensor:
        shared_rows = _shared_table(merged_params, item_index)
        return _add_residual(shared_rows, merged_params, item_index[OWN_ROWS])

    shared = _shared(model_settings, run_seed, catalogue)
    item_params = replace(
        shared.params, private=frozenset({RESIDUAL}), start=_zero_residual(model_settings)
    )
    item_functions = replace(shared.functions, materialize=_materialize(item_params, table))
    return ItemMode(item_params, item_functions)


def _semantic(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> ItemMode:
    residual = ItemParams({}, frozenset({RESIDUAL}), _zero_residual(model_settings))
    return _projected(model_settings, run_seed, catalogue, residual, _add_residual)


def _projected(
    model_settings: ModelSettings,
    run_seed: int,
    catalogue: ItemCatalogue,
    private_params: ItemParams,
    change_table: Change,
) -> ItemMode:
    """Projected public vectors, then changed by the private part with ``change_table``."""
    public_dim = model_settings.text_dim + model_settings.id_dim
    item_vectors = _item_vectors(model_settings, catalogue) if catalogue.known else None
    public_vectors, item_source = torch.zeros(len(catalogue.item_ids) + 1, public_dim), ItemSource()
    if item_vectors is not None:
        text_rows = _padded(torch.from_numpy(item_vectors.rows))
        id_rows = common_item_table(catalogue.item_ids, model_settings.id_dim, 0, 1.0)
        public_vectors = _public_vectors(text_rows, id_rows, model_settings.id_weight)
        item_source = ItemSource(item_vectors.digest, item_vectors.method, text_rows)
    generator = torch.Generator().manual_seed(stream_seed(run_seed, "projection"))
    start_rows = (
        torch.randn(model_settings.embedding_dim, public_dim, generator=generator)
        * model_settings.item_std
    )

    def table(merged_params: Params, item_index: Params) -> Tensor:
        projection = merged_params[PROJECTION]
        projected_rows = table_rows(public_vectors, item_index).to(projection.dtype) @ projection.T
        return change_table(projected_rows, merged_params, item_index[OWN_ROWS])

    item_params = replace(private_params, shared={PROJECTION: start_rows})
    item_functions = ItemFunctions(
        candidates=all_candidates,
        unseen_rows=lambda _data, item_codes: (
            public_vectors[torch.from_numpy(item_codes)] @ start_rows.T
        ),
        materialize=_materialize(item_params, table),
        averaged=frozenset({PROJECTION}),
    )
    return ItemMode(item_params, item_functions, item_source)


def _adapted(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> ItemMode:
    adapter_seed = stream_seed(run_seed, "adapter")

    def adapter(num_items: int) -> Params:
        return first_adapter(
            num_items + 1, model_settings.embedding_dim, model_settings.adapter_rank, adapter_seed
        )

    private_params = ItemParams({}, frozenset(adapter(0)), lambda data: adapter(len(data.touched)))
    projected_mode = _projected(model_settings, run_seed, catalogue, private_params, adapt)

    def unseen(client_data: ClientDataset, item_codes: ItemArray) -> Tensor:
        vector_rows = projected_mode.functions.unseen_rows(client_data, item_codes)
        return torch.cat([vector_rows, vector_rows.new_zeros(len(vector_rows), 1)], dim=1)

    item_functions = replace(projected_mode.functions, unseen_rows=unseen)
    return replace(
        projected_mode, functions=item_functions, head=ItemHead(with_bias, memory_with_bias)
    )


ITEM_MODES: dict[str, Callable[[ModelSettings, int, ItemCatalogue], ItemMode]] = {
    "private": _private,
    "shared": _shared,
    "dual": _dual,
    "semantic": _semantic,
    "adapted": _adapted,
}


def text_vectors(model_settings: ModelSettings, catalogue: ItemCatalogue) -> Tensor:
    """Text vectors by item code, zeros for padding: (V + 1, S). Raises DataError without texts."""
    return _padded(torch.from_numpy(_item_vectors(model_settings, catalogue).rows))


def _item_vectors(model_settings: ModelSettings, catalogue: ItemCatalogue) -> ItemVectors:
    if catalogue.vectors is not None:
        return catalogue.vectors
    ids = catalogue.item_ids
    texts = catalogue.texts or ("",) * len(ids)
    return item_vectors(
        model_settings.item_vectors, ids, texts, model_settings.text_dim, catalogue.histories
    )


def pooled_vectors(model_settings: ModelSettings, catalogue: ItemCatalogue) -> ItemVectors | None:
    """Co-occurrence vectors, which a served model cannot make again; None for other sources."""
    is_pooled = model_settings.item_vectors == CO_OCCURRENCE
    return _item_vectors(model_settings, catalogue) if is_pooled else None


def _public_vectors(text_rows: Tensor, id_rows: Tensor, id_weight: float) -> Tensor:
    """``[text ; weight * random]`` of length 1, both halves of length 1 before: (V + 1, S)."""
    joined_rows = torch.cat([text_rows, id_weight * unit_rows(id_rows)], dim=1)
    return unit_rows(joined_rows)


def _padded(vector_rows: Tensor) -> Tensor:
    """``vector_rows`` after the padding row."""
    return torch.cat([vector_rows.new_zeros(1, vector_rows.shape[1]), vector_rows])


def _zero_residual(model_settings: ModelSettings) -> Callable[[ClientDataset], Params]:
    dim = model_settings.embedding_dim
    return lambda client_data: {RESIDUAL: torch.zeros(len(client_data.touched) + 1, dim)}


def _common_table(model_settings: ModelSettings, run_seed: int, catalogue: ItemCatalogue) -> Tensor:
    return common_item_table(
        catalogue.item_ids, model_settings.embedding_dim, run_seed, model_settings.item_std
    )


def _item_start(model_settings: ModelSettings, run_seed: int, table: Tensor) -> ItemStart:
    """How the rows of private tables start; ``table`` (V + 1, D) is the common start."""
    start_kind, dim = model_settings.item_start, table.shape[1]
    row_std, row_length = model_settings.item_std, mean_length(table)

    def start(
        client_data: ClientDataset, item_codes: ItemArray, histories: Sequence[ItemArray]
    ) -> Tensor:
        if start_kind == "secret":
            raw_ids = [client_data.item_ids[code - 1] for code in item_codes]
            return common_item_table(raw_ids, dim, private_seed(client_data, run_seed), row_std)[1:]
        if start_kind == "co-occurrence":
            return co_occurrence_start(table, row_length, item_codes, histories)
        return table[torch.from_numpy(item_codes)]

    return start


def private_seed(client_data: ClientDataset, run_seed: int) -> int:
    """A seed that follows from the client's secret, HMAC-SHA256(secret, purpose and client).

    In a local simulation clients have no secret: the run's seed is used instead, so that
    experiments repeat. It is then no protection, and none is needed.
    """
    hmac_key = client_data.secret or f"no node, seed {run_seed}".encode()
    key_digest = hmac.digest(hmac_key, f"item table of {client_data.client}".encode(), "sha256")
    return int.from_bytes(key_digest[:8], "little")
