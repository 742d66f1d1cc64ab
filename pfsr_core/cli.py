"""The commands that need no Flower. Thin: they read words, call the core and print its answers.

What a person can put right ends with one line on standard error and exit status 2, without a
traceback. Heavy imports wait until a command needs them, so that ``--help`` is immediate.

What an argument means stands in the docstring of its command: typer 0.20 loses the ``help`` of
arguments where click is 8.5 or newer.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Command = TypeVar("Command", bound=Callable[..., Any])

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
data_app = typer.Typer(no_args_is_help=True, help="Get data, look at it, bring it into one format.")
app.add_typer(data_app, name="data")

Recipe = Annotated[
    Path | None,
    typer.Option("--recipe", "-r", help="TOML file with settings; without it the defaults."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="One setting, as key=value; may be repeated.", metavar="K=V"),
]
State = Annotated[
    Path | None,
    typer.Option("--state", help="Store of a node, or a directory of them; else .pfsr/state here."),
]
Run = Annotated[str, typer.Option("--run", help="Run to serve; without it the last one.")]
Source = Annotated[str, typer.Argument()]
DataPath = Annotated[str, typer.Option("--path", "-p", help="File or directory of the data.")]


def plain_errors(
    expected: Callable[[], tuple[type[Exception], ...]],
) -> Callable[[Command], Command]:
    """Turns the errors that name their own fix into one line and exit status 2.

    ``expected`` names them when one occurs, so that their modules are not imported before.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return command(*args, **kwargs)
            except (ValueError, RuntimeError, OSError) as error:
                if not isinstance(error, expected()):
                    raise
                typer.echo(f"error: {_told(error)}", err=True)
                raise typer.Exit(2) from None

        return wrapped  # type: ignore[return-value]

    return decorate


def _told(error: Exception) -> str:
    """What is said of an error: those of files do not say themselves what to do."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    return (
        f"{error.filename}: {error.strerror}. Fix: give a path that is right, and that you may "
        f"read and write."
    )


def _core_errors() -> tuple[type[Exception], ...]:
    from pfsr_core.data.errors import DataError
    from pfsr_core.evaluation.ranking import DivergedError
    from pfsr_core.item_views import ItemViewsError
    from pfsr_core.recommend import RecommendationError
    from pfsr_core.run_files import RunError
    from pfsr_core.settings import SettingsError
    from pfsr_core.store_file import NodeStoreError

    errors = (DataError, SettingsError, NodeStoreError, RecommendationError, RunError, OSError)
    return (*errors, ItemViewsError, DivergedError)


@data_app.command("fetch")
@plain_errors(_core_errors)
def data_fetch(
    name: Annotated[str, typer.Argument()],
    path: Annotated[
        str, typer.Option("--path", "-p", help="An archive or directory that you have already.")
    ] = "",
) -> None:
    """Download a public dataset into the cache, or check the copy that is there.

    NAME is ml-100k or ml-1m.

    Example: `pfsr data fetch ml-100k`, or offline `pfsr data fetch ml-100k --path ml-100k.zip`
    """
    from pfsr_core.data.errors import DataError
    from pfsr_core.data.fetch import fetch_ml_1m, fetch_ml_100k

    known = {"ml-100k": fetch_ml_100k, "ml-1m": fetch_ml_1m}
    if name not in known:
        fix = f"fetch {' or '.join(known)}; other datasets are read from the path you give"
        raise DataError(f"{name!r} cannot be fetched. Fix: {fix}.")
    typer.echo(str(known[name](path)))


@data_app.command("describe")
@plain_errors(_core_errors)
def data_describe(source: Source = "ml-100k", path: DataPath = "") -> None:
    """Print the facts about a dataset and its split, as JSON.

    SOURCE is a dataset's name, as ml-100k, ml-1m, xmarket or synthetic, or `file` for your own.

    Example: `pfsr data describe file --path purchases.csv`
    """
    from pfsr_core.data import load_dataset
    from pfsr_core.data.describe import describe
    from pfsr_core.data.splits import leave_one_out

    log = load_dataset(source, path)
    typer.echo(json.dumps(describe(log, leave_one_out(log)), indent=2, ensure_ascii=False))


@data_app.command("prepare")
@plain_errors(_core_errors)
def data_prepare(
    source: Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write into.")],
    path: DataPath = "",
) -> None:
    """Check a dataset and write it as Parquet, with its vocabulary and its facts.

    SOURCE is a dataset's name, as ml-100k, ml-1m, xmarket or synthetic, or `file` for your own.

    The result is read with `data.source = "file"` and the path of `interactions.parquet`.

    Example: `pfsr data prepare file --path purchases.csv --out data/purchases`
    """
    from pfsr_core.prepare import prepare

    file = prepare(source, path, out)
    typer.echo(f'{file}\nUse it with --set data.source=file --set data.path="{file}"')


@data_app.command("clean")
@plain_errors(_core_errors)
def data_clean(
    source: Source,
    path: DataPath = "",
    column: Annotated[str, typer.Option(help="Column that tells markets apart.")] = "",
    join_variants: Annotated[
        float, typer.Option(help="Jaccard index of the reviews of variants.", min=0.01, max=1.0)
    ] = 0.3,
    user_core: Annotated[int, typer.Option(help="Fewest interactions of a user.", min=0)] = 5,
    item_core: Annotated[
        int, typer.Option(help="Fewest interactions of an item in a market.", min=0)
    ] = 3,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory for the clean copy, as CSV.")
    ] = None,
) -> None:
    """Join items that are variants of one product; print what that changes in every market.

    SOURCE is a dataset's name, as ml-100k, ml-1m, xmarket or synthetic, or `file` for your own.

    A run does the same to its data with `data.join-variants`, `data.user-core`, `data.item-core`
    and `federation.column`. With `--out` the clean copy is written, and which item became which.

    Example: `pfsr data clean xmarket --path data/xmarket --column market`
    """
    from pfsr_core.cli_answers import cleaning_text
    from pfsr_core.data.cleaning import Cleaning
    from pfsr_core.prepare import clean_copy

    rules = Cleaning(
        column=column, join_variants=join_variants, user_core=user_core, item_core=item_core
    )
    typer.echo(cleaning_text(*clean_copy(source, path, rules, out)))
    if out is not None:
        typer.echo(f'Use it with --set data.source=file --set data.path="{out}/interactions.csv"')


@app.command()
@plain_errors(_core_errors)
def simulate(
    recipe: Recipe = None,
    settings: Set = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New directory of the run.")
    ] = None,
) -> None:
    """Run a recipe in one process, without Flower: the reference of the networked runs.

    Writes the files of a run, its page and the final table.

    Example: `pfsr simulate --recipe recipes/pfsr.toml --set federation.rounds=5`
    """
    from pfsr_core import cli_training

    cli_training.simulate_run(recipe, settings or [], out, typer.echo)


@app.command()
@plain_errors(_core_errors)
def central(
    recipe: Recipe = None,
    settings: Set = None,
    seed: Annotated[int | None, typer.Option(help="Instead of run.seed.", min=0)] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Instead of federation.rounds: passes.", min=1)
    ] = None,
) -> None:
    """Train the same model on all data in one place: what federation could reach at best.

    All users are one client and the item table is shared; the pass is selected on validation.

    Example: `pfsr central --recipe recipes/pfsr.toml --rounds 30 --seed 1`
    """
    from pfsr_core import cli_training

    cli_training.central(recipe, settings or [], seed, rounds, typer.echo)


@app.command()
@plain_errors(_core_errors)
def baselines(
    recipe: Recipe = None,
    settings: Set = None,
    by_client: Annotated[
        bool, typer.Option("--by-client", help="Every client by itself, in place of the means.")
    ] = False,
) -> None:
    """Popularity, item-kNN and Markov chains: on each client alone, and on all data together.

    Example: `pfsr baselines --recipe recipes/pfsr.toml`
    """
    from pfsr_core import cli_training

    cli_training.baselines(recipe, settings or [], by_client, typer.echo)


def _bench_errors() -> tuple[type[Exception], ...]:
    from pfsr_core.benchmarks.command import UnknownBenchmarkError

    return (UnknownBenchmarkError, OSError)


@app.command()
@plain_errors(_bench_errors)
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Directory of performance.md; its older lines stay."),
    ] = None,
) -> None:
    """Time ours against peers, in pairs on this machine: one JSON line for every case.

    NAMES are of scan, encoder, serve, history, round and scale; without one it is all of them.

    Peers that are packages come with `pip install "pfsr[bench]"`; a missing one is named.

    Example: `pfsr bench encoder serve`
    """
    from pfsr_core.benchmarks import command

    command.run(names or [], out, typer.echo)


@app.command()
@plain_errors(_core_errors)
def recommend(
    user: Annotated[str, typer.Option("--user", "-u", help="User id as in the data.")],
    state: State = None,
    k: Annotated[int, typer.Option("-k", help="How many items.")] = 10,
    items: Annotated[
        str | None,
        typer.Option(help="Item ids, oldest first, with commas: instead of the stored history."),
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(help="Item ids, oldest first, with commas: the user's newest, kept."),
    ] = None,
    client: Annotated[str, typer.Option(help="Whose model answers a new user.")] = "",
    run: Run = "",
) -> None:
    """Recommend items to one user with the model that a run left on this node.

    Examples: `pfsr recommend --user 42 -k 5`, after something new `... --user 42 --add 50`,
    for somebody new `... --user guest --items "50,181"`
    """
    from pfsr_core import cli_answers
    from pfsr_core.node_store import default_state_directory
    from pfsr_core.recommend import RecommendationError, add_items, check_question, find_served
    from pfsr_core.recommend import recommend as answer

    if add is not None and items is not None:
        raise RecommendationError(
            "--items stand in place of the history that --add goes on from. Fix: give one of them."
        )
    given = None if items is None else _listed(items)
    served = find_served(state or default_state_directory(), user, run)
    if add is not None:
        check_question(served, k, client)  # before anything is kept
        add_items(served, user, _listed(add), int(time.time()))
    typer.echo(cli_answers.answer_text(answer(served, user, k, given, client), served))


@app.command("item-views")
@plain_errors(_core_errors)
def item_views(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.")
    ] = Path("item-views.png"),
    clients: Annotated[
        list[str] | None,
        typer.Option(
            "--client", "-c", help="May be repeated; else the largest, median and smallest one."
        ),
    ] = None,
    state: State = None,
    run: Run = "",
) -> None:
    """Draw where a client's model puts the items, before and after personalization.

    Reads a node's own store, like `recommend`. The picture shows which items the client has: it
    belongs to the node.

    Example: `pfsr item-views --state .pfsr/state/node-0.sqlite --client user-42 --out views.png`
    """
    from pfsr_core.item_views_plot import item_views_text, save_item_views
    from pfsr_core.node_store import default_state_directory
    from pfsr_core.node_views import stored_item_views

    views = stored_item_views(state or default_state_directory(), run, clients or [])
    save_item_views(views, out)
    typer.echo(f"{item_views_text(views)}\npicture: {out}")


@app.command()
@plain_errors(_core_errors)
def forget(
    user: Annotated[str, typer.Option("--user", "-u", help="User id as in the data.")],
    state: State = None,
) -> None:
    """Delete a user from the models that are served here: history, memory and private row.

    A client that nobody else is in goes whole. The node's data are not touched: take the user out
    of them before the next run.

    Example: `pfsr forget --user 42`
    """
    from pfsr_core.node_store import default_state_directory
    from pfsr_core.recommend import forget_everywhere

    count = forget_everywhere(state or default_state_directory(), user)
    typer.echo(f"user {user}: deleted from {count} served models")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command()
@plain_errors(_core_errors)
def report(run: Annotated[Path, typer.Argument()]) -> None:
    """Write the page of a run again and print its final table; also while it is going on.

    RUN is the directory of a run.

    Example: `pfsr report runs/pfsr-20250131-120000`
    """
    from pfsr_core.report import final_table, write_report

    path = write_report(run)
    typer.echo(final_table(run))
    typer.echo(f"report: {path}")
