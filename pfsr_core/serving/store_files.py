"""Finds the stores of nodes on this machine: one file, or a directory of several."""

from __future__ import annotations

from pathlib import Path

from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.served_model import RecommendationError, Served
from pfsr_core.serving.sqlite_file import StateMissingError


def open_served(store_path: Path, run_name: str = "") -> Served:
    """The model installed last in the store at ``store_path``, or that of ``run_name``.

    Raises:
        RecommendationError: There is no such file (none is created).
        NodeStoreError: The file is no store or is damaged, or it serves no such model.
    """
    _check_file(store_path)
    return NodeStore(store_path).served(run_name)


def served_in(stores_path: Path, run_name: str = "") -> list[Served]:
    """What each node serves, in the order of their files; nodes without such a model are left out.

    Args:
        stores_path: A node's store, or a directory of several, as a simulation leaves it.
        run_name: Name of the run, else the last one of each store.

    Raises:
        RecommendationError: There is no store.
        NodeStoreError: A store is damaged, or none has such a model.
    """
    served_models: list[Served] = []
    problems: list[StateMissingError] = []
    for store_path in _stores(stores_path):
        try:
            served_models.append(open_served(store_path, run_name))
        except StateMissingError as problem:
            problems.append(problem)
    if not served_models:
        raise problems[0]
    return served_models


def find_served(stores_path: Path, user_id: str, run_name: str = "") -> Served:
    """The served model of the node that holds ``user_id``, else that of the first node.

    Args and what is raised: see :func:`served_in`.
    """
    served_models = served_in(stores_path, run_name)
    home_models = (
        served_model
        for served_model in served_models
        if any(
            user_id in served_client.histories for served_client in served_model.clients.values()
        )
    )
    return next(home_models, served_models[0])


def forget_everywhere(stores_path: Path, user_id: str) -> int:
    """Takes ``user_id`` out of the stores at ``stores_path``, see ``NodeStore.forget``.

    Returns:
        Out of how many served models.

    Raises:
        RecommendationError: There is no store, or none knows the user.
    """
    num_models = sum(NodeStore(store_path).forget(user_id) for store_path in _stores(stores_path))
    if not num_models:
        raise RecommendationError(
            f"{stores_path} serves no user {user_id!r}: nothing was deleted. Fix: write the id as "
            f"it is in the data, and give the store of the node that holds the user."
        )
    return num_models


def _check_file(store_path: Path) -> None:
    if not store_path.is_file():
        raise RecommendationError(
            f"{store_path}: no such file. Fix: give the node's store, which a finished run leaves "
            f"in its state directory, e.g. .pfsr/state/node-0.sqlite."
        )


def _stores(stores_path: Path) -> list[Path]:
    if not stores_path.is_dir():
        _check_file(stores_path)
        return [stores_path]
    store_paths = sorted(stores_path.glob("*.sqlite"))
    if not store_paths:
        raise RecommendationError(
            f"{stores_path} holds no node's store (*.sqlite). Fix: finish a run first, e.g. make "
            f"run, or give --state."
        )
    return store_paths
