"""Commands that use a trained model on this machine: recommend, forget, item-map."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from pfsr.cli.errors import core_errors, plain_errors
from pfsr.cli.options import ModelDirectory, RunName, StatePath, store_path

UserId = Annotated[str, typer.Option("--user", "-u", help="User id, as in the data.")]


@plain_errors(core_errors)
def recommend(
    user: UserId,
    *,
    state: StatePath = None,
    model: ModelDirectory = None,
    k: Annotated[int, typer.Option("-k", help="Number of items.")] = 10,
    items: Annotated[
        str | None,
        typer.Option(
            help="History in place of the stored one: item ids, oldest first, comma-separated."
        ),
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(
            help="New interactions to store for the user: item ids, oldest first, comma-separated."
        ),
    ] = None,
    client: Annotated[
        str,
        typer.Option(help="Client whose model serves a new user. Default: the largest."),
    ] = "",
    run: RunName = "",
) -> None:
    """Recommend items to one user, with a saved model or the one that a run left on this node.

    Examples: `pfsr recommend --user 42 -k 5`; with a new interaction `... --user 42 --add 50`; for
    a new user `... --user guest --items "50,181"`; with a run's model `... --model runs/NAME`
    """
    from pfsr.cli.output import answer_text
    from pfsr_core.serving.recommend import add_items, check_question
    from pfsr_core.serving.recommend import recommend as answer
    from pfsr_core.serving.served_model import RecommendationError
    from pfsr_core.serving.store_files import find_served

    if add is not None and items is not None:
        raise RecommendationError(
            "--items replace the stored history, and --add extends it. Fix: give one of them."
        )
    given_history = None if items is None else _split_ids(items)
    served_run = find_served(store_path(state, model), user, run)
    if add is not None:
        check_question(served_run, k, client)  # before anything is stored
        add_items(served_run, user, _split_ids(add), int(time.time()))
    typer.echo(answer_text(answer(served_run, user, k, given_history, client), served_run))


@plain_errors(core_errors)
def item_map(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.")
    ] = Path("item-map.png"),
    *,
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            "-c",
            help="Client to draw; may be repeated. Default: largest, median and smallest.",
        ),
    ] = None,
    state: StatePath = None,
    model: ModelDirectory = None,
    run: RunName = "",
) -> None:
    """Draw a 2-D map of a client's item vectors, before and after personalization.

    Reads a node's own store, like `recommend`. The picture shows which items the client has: keep
    it on the node.

    Example: `pfsr item-map --state .pfsr/state/node-0.sqlite --client user-42 --out map.png`
    """
    from pfsr_core.reports.item_map_plot import item_map_text, save_item_map
    from pfsr_core.reports.node_item_map import stored_item_map

    item_maps = stored_item_map(store_path(state, model), run, clients or [])
    save_item_map(item_maps, out)
    typer.echo(f"{item_map_text(item_maps)}\npicture: {out}")


@plain_errors(core_errors)
def forget(user: UserId, *, state: StatePath = None, model: ModelDirectory = None) -> None:
    """Delete a user from the served models of this machine: history, memory and private row.

    A client that has no other user is deleted. The node's data file stays as it is: remove the
    user from it before the next run.

    Example: `pfsr forget --user 42`
    """
    from pfsr_core.serving.store_files import forget_everywhere

    num_models = forget_everywhere(store_path(state, model), user)
    typer.echo(f"user {user}: deleted from {num_models} served models")


def _split_ids(comma_list: str) -> list[str]:
    return [raw_id.strip() for raw_id in comma_list.split(",") if raw_id.strip()]
