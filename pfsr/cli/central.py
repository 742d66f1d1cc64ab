"""``pfsr central`` and ``pfsr baselines``: what federated training is compared with."""

from __future__ import annotations

from typing import Annotated

import typer

from pfsr.cli.errors import core_errors, plain_errors
from pfsr.cli.options import OutputDirectory, RecipeWords, read_words


@plain_errors(core_errors)
def central(
    settings: RecipeWords = None,
    *,
    seed: Annotated[int | None, typer.Option(help="Random seed; replaces run.seed.", min=0)] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Passes over the data; replaces federation.rounds.", min=1),
    ] = None,
    out: OutputDirectory = None,
) -> None:
    """Train the same model on all data in one place, as an upper bound for federated training.

    All users are one client and the item table is shared. The best pass is selected on validation.

    RECIPE is the name of a recipe, such as pfsr, or the path of a TOML file. KEY=VALUE replaces one
    setting.

    Example: `pfsr central pfsr --rounds 30 --seed 1`
    """
    from pfsr.cli.train import central_flat, train_centrally

    train_centrally(central_flat(*read_words(settings), seed, rounds), out, typer.echo)


@plain_errors(core_errors)
def baselines(
    settings: RecipeWords = None,
    *,
    by_client: Annotated[
        bool, typer.Option("--by-client", help="One row for each client, in place of the means.")
    ] = False,
) -> None:
    """Evaluate popularity, item-kNN and Markov chains, on each client alone and on all data.

    RECIPE is the name of a recipe, such as pfsr, or the path of a TOML file. KEY=VALUE replaces one
    setting.

    Example: `pfsr baselines pfsr`
    """
    from pfsr.cli.train import compare_baselines

    compare_baselines(*read_words(settings), by_client, typer.echo)
