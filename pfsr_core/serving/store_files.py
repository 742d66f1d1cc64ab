"""Finds the stores of nodes on this machine: one file, or a directory of several."""

from __future__ import annotations

from pathlib import Path

from pfsr_core.serving.node_store import NodeStore
from pfsr_core.serving.served_model import RecommendationError, Served
from pfsr_core.serving.sqlite_file import StateMissingError


def open_served(path: Path, run: str = "") -> Served:
    """The model installed last in the store at ``path``, or that of ``run``.

    Raises:
        RecommendationError: There is no such file (none is created).
        NodeStoreError: The file is no store or is damaged, or it serves no such model.
    """
    _check_file(path)
    return NodeStore(path).served(run)


def served_in(place: Path, run: str = "") -> list[Served]:
    """What each node serves, in the order of their files; nodes without such a model are left out.

    Args:
        place: A node's store, or a directory of several, as a simulation leaves it.
        run: Name of the run, else the last one of each store.

    Raises:
        RecommendationError: There is no store.
        NodeStoreError: A store is damaged, or none has such a model.
    """
    models: list[Served] = []
    problems: list[StateMissingError] = []
    for path in _stores(place):
        try:
            models.append(open_served(path, run))
        except StateMissingError as problem:
            problems.append(problem)
    if not models:
        raise problems[0]
    return models


def find_served(place: Path, user: str, run: str = "") -> Served:
    """The served model of the node that holds ``user``, else that of the first node.

    Args and what is raised: see :func:`served_in`.
    """
    models = served_in(place, run)
    homes = (
        model
        for model in models
        if any(user in client.histories for client in model.clients.values())
    )
    return next(homes, models[0])


def forget_everywhere(place: Path, user: str) -> int:
    """Takes ``user`` out of the stores at ``place``, see ``NodeStore.forget``.

    Returns:
        Out of how many served models.

    Raises:
        RecommendationError: There is no store, or none knows the user.
    """
    count = sum(NodeStore(path).forget(user) for path in _stores(place))
    if not count:
        raise RecommendationError(
            f"{place} serves no user {user!r}: nothing was deleted. Fix: write the id as it is in "
            f"the data, and give the store of the node that holds the user."
        )
    return count


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise RecommendationError(
            f"{path}: no such file. Fix: give the node's store, which a finished run leaves in its "
            f"state directory, e.g. .pfsr/state/node-0.sqlite."
        )


def _stores(place: Path) -> list[Path]:
    if not place.is_dir():
        _check_file(place)
        return [place]
    stores = sorted(place.glob("*.sqlite"))
    if not stores:
        raise RecommendationError(
            f"{place} holds no node's store (*.sqlite). Fix: finish a run first, e.g. make run, or "
            f"give --state."
        )
    return stores
