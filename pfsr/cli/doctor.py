"""``pfsr doctor``: checks of the installation, and of a node's connection to its server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfsr.cli.errors import deployment_errors, plain_errors

if TYPE_CHECKING:
    from pfsr.deploy.findings import Finding


@plain_errors(deployment_errors)
def doctor(
    *,
    superlink: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Check only the connection from this node to that SuperLink."
        ),
    ] = None,
    root_certificates: Annotated[
        Path | None,
        typer.Option(help="The node's copy of ca.crt. Default: the authorities of the system."),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The node's private key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="The node uses no TLS.")] = False,
) -> None:
    """Check that everything a run needs is installed, and print how to install what is missing.

    With `--superlink` it checks the connection from this node to the server instead, and names
    the cause of a failure.

    The exit status is 1 when something is missing or wrong.

    Example: `pfsr doctor --superlink server:9092 --root-certificates ca.crt --key node.key`
    """
    if superlink is None:
        if root_certificates or key or insecure:
            raise typer.BadParameter("it says how a node connects: give --superlink HOST:PORT too")
        from pfsr.cli.examination import examine
        from pfsr.cli.output import findings_text

        findings: Sequence[Finding] = examine()
        typer.echo(findings_text(findings))
    else:
        from pfsr.cli.output import probe_text
        from pfsr.deploy.probe import diagnose

        findings = diagnose(superlink, root_certificates, key, insecure=insecure)
        typer.echo(probe_text(findings))
    if any(finding.level == "missing" for finding in findings):
        raise typer.Exit(1)
