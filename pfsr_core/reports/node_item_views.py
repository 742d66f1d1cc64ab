"""Item views out of nodes' own stores. They show which items a client has: the picture stays there.

A node draws its own clients; the report of a run has them only where the stores of all its nodes
are on the same machine, as after a simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfsr_core.reports.page import write_report
from pfsr_core.runs.item_views import (
    ItemViews,
    ItemViewsError,
    few,
    has_item_views,
    item_views,
    write_item_views,
)
from pfsr_core.serving.restore import served_assembly, served_data
from pfsr_core.serving.served_model import Served, preview
from pfsr_core.serving.store_files import served_in
from pfsr_core.serving.users import HELD_OUT


def stored_item_views(place: Path, run: str = "", clients: Sequence[str] = ()) -> list[ItemViews]:
    """Of the ``clients``, or of the largest, the median and the smallest one of the run.

    ``place``: a node's store or a directory of them; ``run``: else the last one of the first node.
    Raises ItemViewsError, RecommendationError or NodeStoreError.
    """
    models = served_in(place, run)
    homes = {
        name: model
        for model in models
        if model.origin.run == models[0].origin.run
        for name in model.clients
    }
    for name in clients:
        if name not in homes:
            raise ItemViewsError(f"no client {name!r} here. Fix: choose one of {preview(homes)}.")
    sizes = {name: _size(home, name) for name, home in homes.items()}
    chosen = clients or few({name: size for name, size in sizes.items() if size})
    if not chosen:
        raise ItemViewsError(f"{place} serves no client with users. Fix: ask a node that has some.")
    return [_views(homes[name], name) for name in chosen]


def add_item_views(directory: Path, place: Path) -> bool:
    """Adds them to a run's directory and page, from the stores in ``place``; False: nothing to see.

    For stores of one machine that a simulation has just written. Raises as above.
    """
    if not has_item_views(served_assembly(served_in(place, directory.name)[0])):
        return False
    write_item_views(directory, stored_item_views(place, directory.name))
    write_report(directory)
    return True


def _views(home: Served, client: str) -> ItemViews:
    state, data = home.clients[client].state, served_data(home, client)
    return item_views(served_assembly(home), home.shared, state, data)


def _size(served: Served, client: str) -> int:
    """Training interactions of a client."""
    return sum(max(0, len(codes) - HELD_OUT) for codes in served.clients[client].histories.values())
