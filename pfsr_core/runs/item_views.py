"""Views of the items, global and personalized: where one client's model puts them, in a plane.

The picture of PFedRec (Zhang et al., IJCAI 2023, their t-SNE of item embeddings), for every model
that has a view GLOBAL: the vectors that the federation learnt beside those that the client
recommends with, the items that it trained told apart from the others. Two axes a client, the same
for both views, orthonormal, so that distances are true:

    x   the direction in which personalization moves this client's items most
    y   of what is left, the direction in which the items of both views are spread most

The first axis is chosen to show what personalization does, so a picture makes the most of it; how
much that is say the numbers, which are taken in all dimensions. t-SNE puts both views of an item
side by side whatever happened, and hides what is to be seen here.
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
from pfsr_core.runs.files import ITEM_VIEWS, RunRecord

VIEWS = frozenset({RESIDUAL, ROWS})
NOBODY = ClientDataset("", (), ())
NEAREST = 10
OTHERS = 2000  # of the items that a client did not train, as many are drawn at most
AT_ONCE = 512  # rows of a table of distances, in memory together

Flags = NDArray[np.bool_]


class ItemViewsError(ValueError):
    """Item views of a model or of a client that has none; says what has."""


@dataclass(frozen=True)
class ItemViews:
    """One client's items in both views, ready to be drawn and to be written as JSON.

    ``own`` (n,): which of the drawn items the client trained; ``before``, ``after`` (n, 2).
    ``trained``: how many items it trained. ``moved_own``, ``moved_others``: mean distance between
    the views, over the mean length of a global vector. ``near_before``, ``near_after``: of the
    NEAREST items around an item that the client trained, the share that it trained too;
    ``near_by_chance`` is what a shuffled table has.
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


def has_item_views(assembly: Assembly) -> bool:
    """Whether clients of the algorithm hold views of the items that differ from the global one.

    That is a residual, or rows of PFedRec's table. What is private about users alone is no view of
    items, and private tables have no global one.
    """
    algorithm = assembly.algorithm
    has_global = GLOBAL in algorithm.personalization.variants
    return has_global and not VIEWS.isdisjoint(algorithm.client.init(NOBODY))


def item_views(assembly: Assembly, shared: Params, state: Params, data: ClientDataset) -> ItemViews:
    """Both views of every item that a client sells. Raises ItemViewsError."""
    if not has_item_views(assembly):
        raise ItemViewsError(
            "this model has one view of the items, so nothing can be compared. Fix: take a run "
            "with model.items = 'dual' or 'semantic', or of pfedrec."
        )
    if not len(data.touched):
        raise ItemViewsError(f"client {data.client!r} has trained no item. Fix: choose another.")
    personalization = assembly.algorithm.personalization
    ways = personalization.variants[GLOBAL], personalization.model
    before, after = (
        effective_model(assembly.task, way(shared, state), data)[ITEMS][1:].float() for way in ways
    )
    own = np.isin(data.rankable_items, data.touched)
    moved = torch.linalg.vector_norm(after - before, dim=1)
    moved = moved / torch.linalg.vector_norm(before, dim=1).mean().clamp(min=1e-12)
    shown, axes = _shown(own), _axes(before, after, own)
    return ItemViews(
        client=data.client,
        trained=int(own.sum()),
        moved_own=_mean(moved, own),
        moved_others=_mean(moved, ~own),
        near_before=near(before, own),
        near_after=near(after, own),
        near_by_chance=(int(own.sum()) - 1) / max(1, len(own) - 1),
        own=own[shown].tolist(),
        before=_places(before[shown] @ axes),
        after=_places(after[shown] @ axes),
    )


def few(sizes: Mapping[str, int]) -> list[str]:
    """The largest client, the median one and the smallest: names by their number of interactions.

    Ties go by name; fewer names where there are fewer clients.
    """
    ordered = sorted(sizes, key=lambda name: (-sizes[name], name))
    places = dict.fromkeys((0, len(ordered) // 2, len(ordered) - 1)) if ordered else {}
    return [ordered[place] for place in places]


def of_few(
    assembly: Assembly,
    shared: Params,
    states: Mapping[str, Params],
    clients: Iterable[ClientDataset],
) -> list[ItemViews]:
    """:func:`item_views` of :func:`few` of the clients with a state; none for a model without."""
    if not has_item_views(assembly):
        return []
    known = {data.client: data for data in clients if data.client in states and len(data.touched)}
    chosen = few({name: data.num_interactions for name, data in known.items()})
    return [item_views(assembly, shared, states[name], known[name]) for name in chosen]


def write_item_views(directory: Path, views: Sequence[ItemViews]) -> None:
    """Puts them beside a run's other files, where :func:`read_item_views` finds them."""
    content = {"clients": [asdict(one) for one in views]}
    write_json(directory / ITEM_VIEWS, content, indent=None)


def read_item_views(record: RunRecord) -> list[ItemViews]:
    """Those of a run; none where its private states were elsewhere, or show nothing."""
    return [ItemViews(**one) for one in record.item_views.get("clients", ())]


def near(vectors: Tensor, own: Flags) -> float:
    """Share of own items among the NEAREST around an own one (Euclidean); 0 of a lone item.

    ``vectors`` (V, D); ``own`` (V,).
    """
    flags, places = torch.from_numpy(own), torch.from_numpy(np.flatnonzero(own))
    count, found = min(NEAREST, len(vectors) - 1), 0
    for rows in places.split(AT_ONCE):
        distances = torch.cdist(vectors[rows], vectors)
        distances[torch.arange(len(rows)), rows] = torch.inf
        found += int(flags[distances.topk(count, largest=False).indices].sum())
    return found / max(1, len(places) * count)


def _axes(before: Tensor, after: Tensor, own: Flags) -> Tensor:
    """Two orthonormal columns (D, 2); own items move to the right on the whole."""
    moves = after - before
    both = torch.cat([before, after])
    both = both - both.mean(0)
    x = _main_direction(moves if bool(moves.any()) else both)
    if float((moves[torch.from_numpy(own)] @ x).sum()) < 0:
        x = -x
    y = _main_direction(both - torch.outer(both @ x, x))
    return torch.stack([x, y], dim=1)


def _main_direction(rows: Tensor) -> Tensor:
    """The unit vector (D,) along which ``rows`` (n, D) are longest, its largest entry positive."""
    _, vectors = torch.linalg.eigh(rows.double().T @ rows.double())
    longest: Tensor = vectors[:, -1]
    return (longest * torch.sign(longest[longest.abs().argmax()])).to(rows.dtype)


def _shown(own: Flags) -> NDArray[np.int64]:
    """Places of all own items and of at most OTHERS others, always the same ones."""
    others = np.flatnonzero(~own)
    if len(others) > OTHERS:
        others = np.random.default_rng(0).choice(others, OTHERS, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(own), others]))


def _mean(values: Tensor, chosen: Flags) -> float:
    return float(values[torch.from_numpy(chosen)].mean()) if chosen.any() else 0.0


def _places(points: Tensor) -> list[list[float]]:
    return [[round(float(x), 4), round(float(y), 4)] for x, y in points]
