"""The command line: ``pfsr``. The commands of the core, and those for a federation on a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfsr_core.cli import app as core
from pfsr_core.cli_errors import plain_errors
from server_app.deploy_cli import app as deploy
from server_app.deploy_cli import deployment_errors

if TYPE_CHECKING:
    from pfsr_core.doctor import Finding

PROBE_MARKS = {"ok": "ok", "note": "--", "missing": "WRONG"}

app = typer.Typer(
    name="pfsr",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    help="""Personalized federated sequential recommendation.

Federated runs on Flower start with `flwr run` or `python -m server_app.launch`; `deploy` prepares
a federation over the network, and the other commands need no Flower.

    pfsr doctor                                 is everything there?
    pfsr data fetch ml-100k                     get the data
    pfsr simulate --recipe recipes/pfsr.toml    a run in one process
    pfsr report runs/pfsr-20250131-120000       its page and table
    pfsr recommend --user 42 -k 10
    pfsr deploy --help                          servers and nodes of your own
""",
)
app.add_typer(core)
app.add_typer(deploy, name="deploy")


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
    from server_app.probe import diagnose

    findings = diagnose(superlink, root_certificates, key, insecure=insecure)
    typer.echo(probe_text(findings))
    _end(findings)


def _examine() -> None:
    from pfsr_core import cli_answers
    from pfsr_core.doctor import examine

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
