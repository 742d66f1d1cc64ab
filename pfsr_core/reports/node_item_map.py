"""Item maps out of nodes' own stores. They show which items a client has: the picture stays there.

A node draws its own clients; the report of a run has them only where the stores of all its nodes
are on the same machine, as after a simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfsr_core.reports.page import write_report
from pfsr_core.runs.item_map import (
    ItemMap,
    ItemMapError,
    has_item_map,
    item_map,
    typical_clients,
    write_item_maps,
)
from pfsr_core.serving.restore import served_assembly, served_data
from pfsr_core.serving.served_model import Served, preview
from pfsr_core.serving.store_files import served_in
from pfsr_core.serving.users import HELD_OUT


def stored_item_map(place: Path, run: str = "", clients: Sequence[str] = ()) -> list[ItemMap]:
    """Item maps out of the stores of nodes.

    Args:
        place: A node's store or a directory of them.
        run: Name of the run, else the last one of the first node.
        clients: Names, else the largest, the median and the smallest client of the run.

    Raises:
        ItemMapError: An unknown client, or a model without an item map.
        RecommendationError: There is no store.
        NodeStoreError: A store is damaged or serves no such run.
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
            raise ItemMapError(f"no client {name!r} here. Fix: choose one of {preview(homes)}.")
    sizes = {name: _training_interactions(home, name) for name, home in homes.items()}
    chosen = clients or typical_clients({name: size for name, size in sizes.items() if size})
    if not chosen:
        raise ItemMapError(f"{place} serves no client with users. Fix: ask a node that has some.")
    return [_stored_map(homes[name], name) for name in chosen]


def add_item_map(directory: Path, place: Path) -> bool:
    """Adds item maps to a run's directory and page, from the stores that a simulation has written.

    What is raised: see :func:`stored_item_map`.

    Returns:
        Whether the model has item maps.
    """
    if not has_item_map(served_assembly(served_in(place, directory.name)[0])):
        return False
    write_item_maps(directory, stored_item_map(place, directory.name))
    write_report(directory)
    return True


def _stored_map(home: Served, client: str) -> ItemMap:
    state, data = home.clients[client].state, served_data(home, client)
    return item_map(served_assembly(home), home.shared, state, data)


def _training_interactions(served: Served, client: str) -> int:
    return sum(max(0, len(codes) - HELD_OUT) for codes in served.clients[client].histories.values())
