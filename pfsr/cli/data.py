"""``pfsr data``: download, describe, convert and clean datasets.

Heavy imports wait until a command needs them, so that ``--help`` is immediate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pfsr.cli.errors import core_errors, plain_errors

data_app = typer.Typer(no_args_is_help=True, help="Download, describe, convert and clean datasets.")

Source = Annotated[str, typer.Argument()]
DataPath = Annotated[str, typer.Option("--path", "-p", help="File or directory of the data.")]


@data_app.command("fetch")
@plain_errors(core_errors)
def data_fetch(
    name: Annotated[str, typer.Argument()],
    path: Annotated[
        str,
        typer.Option("--path", "-p", help="Archive or directory to read in place of a download."),
    ] = "",
) -> None:
    """Download a public dataset into the cache, or check the copy that is there.

    NAME is ml-100k or ml-1m.

    Example: `pfsr data fetch ml-100k`, or offline `pfsr data fetch ml-100k --path ml-100k.zip`
    """
    from pfsr_core.data.download import fetch_ml_1m, fetch_ml_100k
    from pfsr_core.data.errors import DataError

    fetch_functions = {"ml-100k": fetch_ml_100k, "ml-1m": fetch_ml_1m}
    if name not in fetch_functions:
        fix = (
            f"fetch {' or '.join(fetch_functions)}; other datasets are read from the path you give"
        )
        raise DataError(f"{name!r} cannot be fetched. Fix: {fix}.")
    typer.echo(str(fetch_functions[name](path)))


@data_app.command("describe")
@plain_errors(core_errors)
def data_describe(source: Source = "ml-100k", path: DataPath = "") -> None:
    """Print statistics of a dataset and of its split, as JSON.

    SOURCE is a dataset's name, such as ml-100k, ml-1m, xmarket or synthetic; `file` for your own.

    Example: `pfsr data describe file --path purchases.csv`
    """
    from pfsr_core.data.datasets import load_dataset
    from pfsr_core.data.describe import describe
    from pfsr_core.data.splits import leave_one_out

    interactions = load_dataset(source, path)
    facts = describe(interactions, leave_one_out(interactions))
    typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))


@data_app.command("prepare")
@plain_errors(core_errors)
def data_prepare(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write into.")],
    path: DataPath = "",
) -> None:
    """Check a dataset and write it as Parquet, with its vocabulary and its statistics.

    SOURCE is a dataset's name, such as ml-100k, ml-1m, xmarket or synthetic; `file` for your own.

    To train on the result set `data.source = "file"` and `data.path` to `interactions.parquet`.

    Example: `pfsr data prepare file --path purchases.csv --out data/purchases`
    """
    from pfsr_core.data.prepare import prepare

    parquet_file = prepare(source, path, out)
    typer.echo(f'{parquet_file}\nUse it with data.source=file data.path="{parquet_file}"')


@data_app.command("clean")
@plain_errors(core_errors)
def data_clean(
    source: Source,
    *,
    path: DataPath = "",
    column: Annotated[
        str, typer.Option(help="Column that names the market of an interaction.")
    ] = "",
    join_variants: Annotated[
        float,
        typer.Option(
            help="Join items whose sets of reviews have at least this Jaccard index.",
            min=0.01,
            max=1.0,
        ),
    ] = 0.3,
    user_core: Annotated[
        int, typer.Option(help="Drop users with fewer interactions; 0 keeps all.", min=0)
    ] = 5,
    item_core: Annotated[
        int,
        typer.Option(help="Drop items with fewer interactions in a market; 0 keeps all.", min=0),
    ] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory for the clean copy, as CSV.")
    ] = None,
) -> None:
    """Join items that are variants of one product; print what changes in every market.

    SOURCE is a dataset's name, such as ml-100k, ml-1m, xmarket or synthetic; `file` for your own.

    A run does the same to its data with `data.join-variants`, `data.user-core`, `data.item-core`
    and `federation.column`. With `--out` the clean copy is written, with a table of the joined
    items.

    Example: `pfsr data clean xmarket --path data/xmarket --column market`
    """
    from pfsr.cli.output import cleaning_text
    from pfsr_core.data.cleaning import Cleaning
    from pfsr_core.data.prepare import clean_copy

    cleaning_rules = Cleaning(
        column=column, join_variants=join_variants, user_core=user_core, item_core=item_core
    )
    typer.echo(cleaning_text(*clean_copy(source, path, cleaning_rules, out)))
    if out is not None:
        typer.echo(f'Use it with data.source=file data.path="{out}/interactions.csv"')
