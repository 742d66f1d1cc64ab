"""The command line: ``pfsr``. The commands of the core, and those for a federation on a network."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfsr.cli.data import data_app
from pfsr.cli.errors import core_errors, plain_errors
from pfsr.deploy.commands import app as deploy
from pfsr.deploy.commands import deployment_errors

if TYPE_CHECKING:
    from pfsr.cli.doctor import Finding

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

PROBE_MARKS = {"ok": "ok", "note": "--", "missing": "WRONG"}

app = typer.Typer(
    name="pfsr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""Personalized federated sequential recommendation.

Federated runs on Flower start with `flwr run` or `python -m pfsr.cli.run`; `deploy` prepares
a federation over the network, and the other commands need no Flower.

    pfsr doctor                                 is everything there?
    pfsr data fetch ml-100k                     get the data
    pfsr simulate --recipe recipes/pfsr.toml    a run in one process
    pfsr report runs/pfsr-20250131-120000       its page and table
    pfsr recommend --user 42 -k 10
    pfsr deploy --help                          servers and nodes of your own
""",
)
app.add_typer(data_app, name="data")
app.add_typer(deploy, name="deploy")


@app.command()
@plain_errors(core_errors)
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
    from pfsr.cli import train as cli_training

    cli_training.simulate_run(recipe, settings or [], out, typer.echo)


@app.command()
@plain_errors(core_errors)
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
    from pfsr.cli import train as cli_training

    cli_training.central(recipe, settings or [], seed, rounds, typer.echo)


@app.command()
@plain_errors(core_errors)
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
    from pfsr.cli import train as cli_training

    cli_training.baselines(recipe, settings or [], by_client, typer.echo)


@app.command()
@plain_errors(core_errors)
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
    from pfsr.cli import output as cli_answers
    from pfsr_core.serving.node_store import default_state_directory
    from pfsr_core.serving.recommend import add_items, check_question
    from pfsr_core.serving.recommend import recommend as answer
    from pfsr_core.serving.served_model import RecommendationError
    from pfsr_core.serving.store_files import find_served

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


@app.command("item-map")
@plain_errors(core_errors)
def item_map(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Picture to write: .png, .svg or .pdf.")
    ] = Path("item-map.png"),
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

    Example: `pfsr item-map --state .pfsr/state/node-0.sqlite --client user-42 --out views.png`
    """
    from pfsr_core.reports.item_map_plot import item_map_text, save_item_map
    from pfsr_core.reports.node_item_map import stored_item_map
    from pfsr_core.serving.node_store import default_state_directory

    views = stored_item_map(state or default_state_directory(), run, clients or [])
    save_item_map(views, out)
    typer.echo(f"{item_map_text(views)}\npicture: {out}")


@app.command()
@plain_errors(core_errors)
def forget(
    user: Annotated[str, typer.Option("--user", "-u", help="User id as in the data.")],
    state: State = None,
) -> None:
    """Delete a user from the models that are served here: history, memory and private row.

    A client that nobody else is in goes whole. The node's data are not touched: take the user out
    of them before the next run.

    Example: `pfsr forget --user 42`
    """
    from pfsr_core.serving.node_store import default_state_directory
    from pfsr_core.serving.store_files import forget_everywhere

    count = forget_everywhere(state or default_state_directory(), user)
    typer.echo(f"user {user}: deleted from {count} served models")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


@app.command("settings")
@plain_errors(core_errors)
def list_settings(
    prefix: Annotated[
        str, typer.Argument(help="Only these, e.g. train or algorithm.pfsr.", metavar="[SECTION]")
    ] = "",
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Write them into pyproject.toml and docs/reference/settings.md."
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail when those two files are stale.")
    ] = False,
) -> None:
    """List the settings with their defaults, meanings and limits.

    With `--write` or `--check` it sees to the files of a checkout that are made from them.

    Example: `pfsr settings algorithm.pfsr`
    """
    from pfsr.cli.settings import print_settings

    print_settings(prefix, write, check, typer.echo)


@app.command()
@plain_errors(core_errors)
def report(run: Annotated[Path, typer.Argument()]) -> None:
    """Write the page of a run again and print its final table; also while it is going on.

    RUN is the directory of a run.

    Example: `pfsr report runs/pfsr-20250131-120000`
    """
    from pfsr_core.reports.page import write_report
    from pfsr_core.reports.text_table import final_table

    path = write_report(run)
    typer.echo(final_table(run))
    typer.echo(f"report: {path}")


@app.command()
@plain_errors(deployment_errors)
def doctor(
    superlink: Annotated[
        str | None,
        typer.Option(help="Only this: why does a node not get through to it? HOST:PORT"),
    ] = None,
    root_certificates: Annotated[
        Path | None, typer.Option(help="The ca.crt that the node has; else the system's.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The private key that the node has.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="The node uses no TLS.")] = False,
) -> None:
    """Check that everything a run needs is here, and say how to get what is not.

    With `--superlink` it checks the way from this node to the server instead, and names the one
    cause among many for which Flower has one message.

    The exit status is 1 when something is missing or wrong.

    Example: `pfsr doctor --superlink server:9092 --root-certificates ca.crt --key node.key`
    """
    if superlink is None:
        if root_certificates or key or insecure:
            raise typer.BadParameter("it says how a node calls: give --superlink HOST:PORT too")
        _examine()
        return
    from pfsr.deploy.probe import diagnose

    findings = diagnose(superlink, root_certificates, key, insecure=insecure)
    typer.echo(probe_text(findings))
    _end(findings)


def _examine() -> None:
    from pfsr.cli import output as cli_answers
    from pfsr.cli.doctor import examine

    findings = examine()
    typer.echo(cli_answers.findings_text(findings))
    _end(findings)


def probe_text(findings: Sequence[Finding]) -> str:
    """One line a step on the way to the SuperLink, the fix below the one that failed."""
    lines = []
    for finding in findings:
        lines.append(f"{PROBE_MARKS[finding.level]:<6} {finding.subject:<12} {finding.found}")
        if finding.fix:
            lines.append(f"{'':<20}fix: {finding.fix}")
    if findings[-1].level != "missing":
        lines.append("a node with these arguments gets through")
    return "\n".join(lines)


def _end(findings: Sequence[Finding]) -> None:
    if any(finding.level == "missing" for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="pfsr")
