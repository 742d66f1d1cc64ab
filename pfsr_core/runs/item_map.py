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
    return GLOBAL in algorithm.views and not OWN_VECTORS.isdisjoint(
        algorithm.init_client(NO_CLIENT)
    )


def item_map(assembly: Assembly, shared: Params, state: Params, data: ClientDataset) -> ItemMap:
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
    if not len(data.touched):
        raise ItemMapError(f"client {data.client!r} has trained no item. Fix: choose another.")
    algorithm = assembly.algorithm
    before, after = (
        effective_model(assembly.task, variant(shared, state), data)[ITEMS][1:].float()
        for variant in (algorithm.views[GLOBAL], algorithm.personalize)
    )
    own = np.isin(data.catalogue, data.touched)
    moved = torch.linalg.vector_norm(after - before, dim=1)
    moved = moved / torch.linalg.vector_norm(before, dim=1).mean().clamp(min=1e-12)
    shown, axes = _shown(own), _axes(before, after, own)
    return ItemMap(
        client=data.client,
        trained=int(own.sum()),
        moved_own=_mean(moved, own),
        moved_others=_mean(moved, ~own),
        near_before=near_share(before, own),
        near_after=near_share(after, own),
        near_by_chance=(int(own.sum()) - 1) / max(1, len(own) - 1),
        own=own[shown].tolist(),
        before=_places(before[shown] @ axes),
        after=_places(after[shown] @ axes),
    )


def typical_clients(sizes: Mapping[str, int]) -> list[str]:
    """The largest client, the median one and the smallest: names by their number of interactions.

    Ties go by name; fewer names where there are fewer clients.
    """
    ordered = sorted(sizes, key=lambda name: (-sizes[name], name))
    positions = dict.fromkeys((0, len(ordered) // 2, len(ordered) - 1)) if ordered else {}
    return [ordered[position] for position in positions]


def typical_item_maps(
    assembly: Assembly,
    shared: Params,
    states: Mapping[str, Params],
    clients: Iterable[ClientDataset],
) -> list[ItemMap]:
    """The item maps of :func:`typical_clients` among those with a state; none for other models."""
    if not has_item_map(assembly):
        return []
    known = {data.client: data for data in clients if data.client in states and len(data.touched)}
    chosen = typical_clients({name: data.num_interactions for name, data in known.items()})
    return [item_map(assembly, shared, states[name], known[name]) for name in chosen]


def write_item_maps(directory: Path, views: Sequence[ItemMap]) -> None:
    """Writes item maps into a run directory."""
    content = {"clients": [asdict(one) for one in views]}
    write_json(directory / ITEM_MAP, content, indent=None)


def read_item_maps(record: RunRecord) -> list[ItemMap]:
    """The item maps of a run; none where its private states were on other machines."""
    return [ItemMap(**one) for one in record.item_map.get("clients", ())]


def near_share(vectors: Tensor, own: Flags) -> float:
    """Share of own items among the NEAREST around an own one (Euclidean); 0 of a lone item.

    ``vectors`` (V, D); ``own`` (V,).
    """
    flags, own_rows = torch.from_numpy(own), torch.from_numpy(np.flatnonzero(own))
    count, neighbours_own = min(NEAREST, len(vectors) - 1), 0
    for rows in own_rows.split(ROWS_PER_BLOCK):
        distances = torch.cdist(vectors[rows], vectors)
        distances[torch.arange(len(rows)), rows] = torch.inf
        neighbours_own += int(flags[distances.topk(count, largest=False).indices].sum())
    return neighbours_own / max(1, len(own_rows) * count)


def _axes(before: Tensor, after: Tensor, own: Flags) -> Tensor:
    """Two orthonormal columns (D, 2), signed so that own items move to the right on average."""
    shifts = after - before
    both = torch.cat([before, after])
    both = both - both.mean(0)
    x = _main_direction(shifts if bool(shifts.any()) else both)
    if float((shifts[torch.from_numpy(own)] @ x).sum()) < 0:
        x = -x
    y = _main_direction(both - torch.outer(both @ x, x))
    return torch.stack([x, y], dim=1)


def _main_direction(rows: Tensor) -> Tensor:
    """The unit vector (D,) along which ``rows`` (n, D) are longest, its largest entry positive."""
    _, vectors = torch.linalg.eigh(rows.double().T @ rows.double())
    longest: Tensor = vectors[:, -1]
    return (longest * torch.sign(longest[longest.abs().argmax()])).to(rows.dtype)


def _shown(own: Flags) -> NDArray[np.int64]:
    """Places of all own items and of at most MAX_OTHERS others, always the same ones."""
    others = np.flatnonzero(~own)
    if len(others) > MAX_OTHERS:
        others = np.random.default_rng(0).choice(others, MAX_OTHERS, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(own), others]))


def _mean(values: Tensor, chosen: Flags) -> float:
    return float(values[torch.from_numpy(chosen)].mean()) if chosen.any() else 0.0


def _places(points: Tensor) -> list[list[float]]:
    return [[round(float(x), 4), round(float(y), 4)] for x, y in points]
