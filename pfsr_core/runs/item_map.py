"""The item map: where one client's model puts the items, before and after personalization.

A picture in the plane, after PFedRec (Zhang et al., IJCAI 2023, their t-SNE of item embeddings), of
every model with the variant GLOBAL: the item vectors that the federation learnt beside those that
the client recommends with, the items that it trained marked. Each client has two axes, the same for
both variants and orthonormal, so that distances are true:

    x   the direction in which personalization moves this client's items most
    y   of the rest, the direction in which the items of both variants are spread most

The first axis is chosen to show what personalization does, so the picture exaggerates it; the
figures beside it are taken in all dimensions. t-SNE would put both vectors of an item side by side
whatever happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pfsr_core.data.client_dataset import ClientDataset
from pfsr_core.evaluation.scoring import effective_model
from pfsr_core.federated.algorithm import GLOBAL
from pfsr_core.federated.model import Assembly
from pfsr_core.files import write_json
from pfsr_core.models.item_scorer import ROWS
from pfsr_core.models.parameter_names import ITEMS, RESIDUAL
from pfsr_core.params import Params
from pfsr_core.runs.files import ITEM_MAP, RunRecord

OWN_VECTORS = frozenset({RESIDUAL, ROWS})  # private parameters that change a client's item vectors
NO_CLIENT = ClientDataset("", (), ())
NEAREST = 10
MAX_OTHERS = 2000  # items drawn at most of those that the client did not train
ROWS_PER_BLOCK = 512  # of a table of distances, in memory together

Flags = NDArray[np.bool_]


class ItemMapError(ValueError):
    """An item map of a model or of a client that has none; says what has."""


@dataclass(frozen=True)
class ItemMap:
    """One client's item map, ready to be drawn and to be written as JSON.

    Attributes:
        client: Its name.
        trained: How many items it trained.
        moved_own: Mean distance between the two vectors of an item that it trained, over the mean
            length of a global vector.
        moved_others: The same of the other items.
        near_before: Of the NEAREST items around one that the client trained, the share that it
            trained too, in the global table.
        near_after: The same in the client's table.
        near_by_chance: The same in a shuffled table.
        own: (n,) which of the drawn items the client trained.
        before: (n, 2) their positions in the global table.
        after: (n, 2) their positions in the client's table.
    """

    client: str
    trained: int
    moved_own: float
    moved_others: float
    near_before: float
    near_after: float
    near_by_chance: float
    own: list[bool]
    before: list[list[float]]
    after: list[list[float]]


def has_item_map(assembly: Assembly) -> bool:
    """Whether clients of the algorithm hold item vectors that differ from the global ones.

    That is a residual, or rows of PFedRec's table. Private parameters of users change no item
    vector, and private tables have no global vectors to compare with.
    """
    algorithm = assembly.algorithm
    has_global = GLOBAL in algorithm.personalization.variants
    return has_global and not OWN_VECTORS.isdisjoint(algorithm.client.init(NO_CLIENT))


def item_map(
    assembly: Assembly, shared_params: Params, client_state: Params, client_data: ClientDataset
) -> ItemMap:
    """The item map of one client.

    Raises:
        ItemMapError: The model has no global item vectors beside the client's, or the client has
            trained no item.
    """
    if not has_item_map(assembly):
        raise ItemMapError(
            "this model has one vector for each item, so nothing can be compared. Fix: take a run "
            "with model.items = 'dual' or 'semantic', or of pfedrec."
        )
    if not len(client_data.touched):
        raise ItemMapError(
            f"client {client_data.client!r} has trained no item. Fix: choose another."
        )
    personalization = assembly.algorithm.personalization
    global_vectors, client_vectors = (
        effective_model(assembly.task, merge_variant(shared_params, client_state), client_data)[
            ITEMS
        ][1:].float()
        for merge_variant in (personalization.variants[GLOBAL], personalization.model)
    )
    own_mask = np.isin(client_data.rankable_items, client_data.touched)
    shift_lengths = torch.linalg.vector_norm(client_vectors - global_vectors, dim=1)
    shift_lengths = shift_lengths / torch.linalg.vector_norm(global_vectors, dim=1).mean().clamp(
        min=1e-12
    )
    shown_rows = _shown_rows(own_mask)
    plane_axes = _plane_axes(global_vectors, client_vectors, own_mask)
    return ItemMap(
        client=client_data.client,
        trained=int(own_mask.sum()),
        moved_own=_mean(shift_lengths, own_mask),
        moved_others=_mean(shift_lengths, ~own_mask),
        near_before=near_share(global_vectors, own_mask),
        near_after=near_share(client_vectors, own_mask),
        near_by_chance=(int(own_mask.sum()) - 1) / max(1, len(own_mask) - 1),
        own=own_mask[shown_rows].tolist(),
        before=_rounded_points(global_vectors[shown_rows] @ plane_axes),
        after=_rounded_points(client_vectors[shown_rows] @ plane_axes),
    )


def typical_clients(interaction_counts: Mapping[str, int]) -> list[str]:
    """The largest client, the median one and the smallest: names by their number of interactions.

    Ties go by name; fewer names where there are fewer clients.
    """
    clients_by_size = sorted(
        interaction_counts, key=lambda client_name: (-interaction_counts[client_name], client_name)
    )
    positions = (
        dict.fromkeys((0, len(clients_by_size) // 2, len(clients_by_size) - 1))
        if clients_by_size
        else {}
    )
    return [clients_by_size[position] for position in positions]


def typical_item_maps(
    assembly: Assembly,
    shared_params: Params,
    client_states: Mapping[str, Params],
    client_datasets: Iterable[ClientDataset],
) -> list[ItemMap]:
    """The item maps of :func:`typical_clients` among those with a state; none for other models."""
    if not has_item_map(assembly):
        return []
    data_by_client = {
        client_data.client: client_data
        for client_data in client_datasets
        if client_data.client in client_states and len(client_data.touched)
    }
    chosen_clients = typical_clients(
        {
            client_name: client_data.num_interactions
            for client_name, client_data in data_by_client.items()
        }
    )
    return [
        item_map(assembly, shared_params, client_states[client_name], data_by_client[client_name])
        for client_name in chosen_clients
    ]


def write_item_maps(run_directory: Path, item_maps: Sequence[ItemMap]) -> None:
    """Writes item maps into a run directory."""
    content = {"clients": [asdict(client_map) for client_map in item_maps]}
    write_json(run_directory / ITEM_MAP, content, indent=None)


def read_item_maps(record: RunRecord) -> list[ItemMap]:
    """The item maps of a run; none where its private states were on other machines."""
    return [ItemMap(**map_entry) for map_entry in record.item_map.get("clients", ())]


def near_share(item_vectors: Tensor, own_mask: Flags) -> float:
    """Share of own items among the NEAREST around an own one (Euclidean); 0 of a lone item.

    ``item_vectors`` (V, D); ``own_mask`` (V,).
    """
    own_flags, own_rows = torch.from_numpy(own_mask), torch.from_numpy(np.flatnonzero(own_mask))
    num_neighbours, neighbours_own = min(NEAREST, len(item_vectors) - 1), 0
    for block_rows in own_rows.split(ROWS_PER_BLOCK):
        distances = torch.cdist(item_vectors[block_rows], item_vectors)
        distances[torch.arange(len(block_rows)), block_rows] = torch.inf
        neighbours_own += int(
            own_flags[distances.topk(num_neighbours, largest=False).indices].sum()
        )
    return neighbours_own / max(1, len(own_rows) * num_neighbours)


def _plane_axes(global_vectors: Tensor, client_vectors: Tensor, own_mask: Flags) -> Tensor:
    """Two orthonormal columns (D, 2), signed so that own items move to the right on average."""
    item_shifts = client_vectors - global_vectors
    all_vectors = torch.cat([global_vectors, client_vectors])
    all_vectors = all_vectors - all_vectors.mean(0)
    x = _main_direction(item_shifts if bool(item_shifts.any()) else all_vectors)
    if float((item_shifts[torch.from_numpy(own_mask)] @ x).sum()) < 0:
        x = -x
    y = _main_direction(all_vectors - torch.outer(all_vectors @ x, x))
    return torch.stack([x, y], dim=1)


def _main_direction(rows: Tensor) -> Tensor:
    """The unit vector (D,) along which ``rows`` (n, D) are longest, its largest entry positive."""
    _, eigenvectors = torch.linalg.eigh(rows.double().T @ rows.double())
    main_axis: Tensor = eigenvectors[:, -1]
    return (main_axis * torch.sign(main_axis[main_axis.abs().argmax()])).to(rows.dtype)


def _shown_rows(own_mask: Flags) -> NDArray[np.int64]:
    """Places of all own items and of at most MAX_OTHERS others, always the same ones."""
    other_rows = np.flatnonzero(~own_mask)
    if len(other_rows) > MAX_OTHERS:
        other_rows = np.random.default_rng(0).choice(other_rows, MAX_OTHERS, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(own_mask), other_rows]))


def _mean(values: Tensor, row_mask: Flags) -> float:
    return float(values[torch.from_numpy(row_mask)].mean()) if row_mask.any() else 0.0


def _rounded_points(points: Tensor) -> list[list[float]]:
    return [[round(float(x), 4), round(float(y), 4)] for x, y in points]
