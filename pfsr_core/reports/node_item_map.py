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


def stored_item_map(
    stores_path: Path, run_name: str = "", client_names: Sequence[str] = ()
) -> list[ItemMap]:
    """Item maps out of the stores of nodes.

    Args:
        stores_path: A node's store or a directory of them.
        run_name: Name of the run, else the last one of the first node.
        client_names: Names, else the largest, the median and the smallest client of the run.

    Raises:
        ItemMapError: An unknown client, or a model without an item map.
        RecommendationError: There is no store.
        NodeStoreError: A store is damaged or serves no such run.
    """
    served_models = served_in(stores_path, run_name)
    home_models = {
        client_name: served_model
        for served_model in served_models
        if served_model.origin.run == served_models[0].origin.run
        for client_name in served_model.clients
    }
    for client_name in client_names:
        if client_name not in home_models:
            raise ItemMapError(
                f"no client {client_name!r} here. Fix: choose one of {preview(home_models)}."
            )
    interaction_counts = {
        client_name: _training_interactions(home_model, client_name)
        for client_name, home_model in home_models.items()
    }
    chosen_clients = client_names or typical_clients(
        {
            client_name: num_interactions
            for client_name, num_interactions in interaction_counts.items()
            if num_interactions
        }
    )
    if not chosen_clients:
        raise ItemMapError(
            f"{stores_path} serves no client with users. Fix: ask a node that has some."
        )
    return [_stored_map(home_models[client_name], client_name) for client_name in chosen_clients]


def add_item_map(run_directory: Path, stores_path: Path) -> bool:
    """Adds item maps to a run's directory and page, from the stores that a simulation has written.

    What is raised: see :func:`stored_item_map`.

    Returns:
        Whether the model has item maps.
    """
    if not has_item_map(served_assembly(served_in(stores_path, run_directory.name)[0])):
        return False
    write_item_maps(run_directory, stored_item_map(stores_path, run_directory.name))
    write_report(run_directory)
    return True


def _stored_map(home_model: Served, client_name: str) -> ItemMap:
    client_state = home_model.clients[client_name].state
    client_data = served_data(home_model, client_name)
    return item_map(served_assembly(home_model), home_model.shared, client_state, client_data)


def _training_interactions(served: Served, client_name: str) -> int:
    return sum(
        max(0, len(item_codes) - HELD_OUT)
        for item_codes in served.clients[client_name].histories.values()
    )
