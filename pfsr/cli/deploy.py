"""``pfsr deploy``: a federation over gRPC with TLS and registered nodes, by Flower's own commands.

Each command prints the Flower command that it runs, with the environment variables that it adds, so
that both can be copied into a service file.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pfsr.cli.errors import deployment_errors, plain_errors

DEFAULT_CONNECTION = "pfsr"
FLEET_ADDRESS = "0.0.0.0:9092"
CONTROL_ADDRESS = "127.0.0.1:8000"

deploy_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""A federation over the network: certificates, keys, registration, SuperLink, nodes.

docs/guides/deployment.md explains every step. In short:

```
on the server   pfsr deploy init tls --host server.example
                pfsr deploy superlink tls
on a node       pfsr deploy key node.key             (only node.key.pub travels)
on the server   pfsr deploy register node.key.pub
on the node     pfsr deploy node --superlink server.example:9092 --ca ca.crt
                    --key node.key --state state --name shop-1 --data shop.csv
on the server   flwr run . pfsr --stream
```
""",
)

Directory = Annotated[Path, typer.Argument()]
HostNames = Annotated[
    list[str],
    typer.Option(
        "--host", help="Name or IP address by which nodes reach the server; may be repeated."
    ),
]
ConnectionName = Annotated[
    str, typer.Option(help="Name of the connection in Flower's config.toml.")
]
ControlAddress = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Address where runs are started and nodes registered."),
]
AuthorityCertificate = Annotated[Path, typer.Option("--ca", help="The ca.crt of the federation.")]
PrintOnly = Annotated[bool, typer.Option("--print-only", help="Print the command, do not run it.")]


plain_deployment_errors = plain_errors(deployment_errors)


@deploy_app.command()
@plain_deployment_errors
def init(
    directory: Directory,
    *,
    host: HostNames,
    connection: ConnectionName = DEFAULT_CONNECTION,
    control: ControlAddress = CONTROL_ADDRESS,
) -> None:
    """Make the certificate authority, the server's certificate and a connection profile.

    DIRECTORY is where ca.key, ca.crt, server.key and server.crt are written.

    Example: `pfsr deploy init tls --host server.example --host 10.0.0.7`
    """
    from pfsr.deploy.certificates import alternative_names
    from pfsr.deploy.flower_commands import make_authority, make_server_certificate, split_address

    alternative_names(host)  # before anything is written
    split_address(control)
    make_authority(directory)
    make_server_certificate(directory, host)
    typer.echo(f"{directory}/ca.crt   every node needs a copy; it is no secret")
    typer.echo(f"{directory}/ca.key   signs the server's certificates: keep it, and keep it secret")
    typer.echo(f"{directory}/server.crt, server.key   for the SuperLink")
    _write_profile(connection, control, directory / "ca.crt")
    typer.echo(f"next: pfsr deploy superlink {directory}")


@deploy_app.command()
@plain_deployment_errors
def certificate(directory: Directory, *, host: HostNames) -> None:
    """Renew the server's certificate, or give it other names. Nodes need no change.

    DIRECTORY is the one that pfsr deploy init has written into.

    Example: `pfsr deploy certificate tls --host server.example`
    """
    from pfsr.deploy.flower_commands import make_server_certificate

    make_server_certificate(directory, host)
    typer.echo(f"{directory}/server.crt, server.key   written; restart the SuperLink")


@deploy_app.command()
@plain_deployment_errors
def profile(
    *,
    ca: AuthorityCertificate,
    connection: ConnectionName = DEFAULT_CONNECTION,
    control: ControlAddress = CONTROL_ADDRESS,
) -> None:
    """Write the connection into Flower's config.toml, on a machine that starts runs.

    The control address is the local end of a tunnel to the server, see docs/guides/deployment.md.

    Example: `pfsr deploy profile --ca ca.crt --control 127.0.0.1:8000`
    """
    _write_profile(connection, control, ca)


@deploy_app.command()
@plain_deployment_errors
def superlink(
    directory: Directory,
    *,
    fleet: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Address for nodes: the only port to open."),
    ] = FLEET_ADDRESS,
    control: ControlAddress = CONTROL_ADDRESS,
    database: Annotated[
        Path | None,
        typer.Option(help="File of registrations and runs. Default: DIRECTORY/superlink.db."),
    ] = None,
    print_only: PrintOnly = False,
) -> None:
    """Start the SuperLink with TLS; it admits registered nodes only.

    DIRECTORY is the one that pfsr deploy init has written into.

    Example: `pfsr deploy superlink tls`
    """
    from pfsr.deploy.flower_commands import split_address, superlink_command

    split_address(fleet)
    _require_file(directory / "server.crt", f"pfsr deploy init {directory} --host NAME")
    database_file = database or directory / "superlink.db"
    flower_command = superlink_command(
        directory, fleet_address=fleet, control_address=control, database_file=database_file
    )
    _run(flower_command, {}, print_only)


@deploy_app.command()
@plain_deployment_errors
def key(
    path: Annotated[Path, typer.Argument()],
) -> None:
    """Make a node's key, on the node. The private half never leaves it.

    PATH is where the private key is written; PATH.pub is written beside it.

    Example: `pfsr deploy key node.key`
    """
    from pfsr.deploy.flower_commands import make_node_key, node_key_command, public_key_path

    make_node_key(path)
    _print_command(node_key_command(path), {})
    public_path = public_key_path(path)
    typer.echo(f"next, at the server with this file: pfsr deploy register {public_path.name}")


@deploy_app.command()
@plain_deployment_errors
def register(
    public_key: Annotated[Path, typer.Argument()],
    *,
    connection: ConnectionName = DEFAULT_CONNECTION,
    print_only: PrintOnly = False,
) -> None:
    """Admit a node, while the SuperLink runs.

    PUBLIC_KEY is the .pub file of the node.

    Example: `pfsr deploy register node.key.pub`
    """
    from pfsr.deploy.flower_commands import check_public_key, register_command

    _require_file(public_key, "pfsr deploy key PATH on the node, then bring PATH.pub here")
    check_public_key(public_key)
    _run(register_command(public_key, connection), {}, print_only)


@deploy_app.command()
@plain_deployment_errors
def node(  # noqa: PLR0913 - an option each
    *,
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The SuperLink's port for nodes.")
    ],
    ca: AuthorityCertificate,
    key: Annotated[Path, typer.Option(help="This node's private key.")],
    state: Annotated[
        Path, typer.Option(help="Directory for this node's private states and served models.")
    ],
    name: Annotated[
        str, typer.Option(help="Name of a node that has data of its own, with --data.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="File of the node's interactions: CSV, Parquet, ...")
    ] = None,
    clients: Annotated[
        int,
        typer.Option(
            help="Number of clients that the users in --data form; 0: as the run says.", min=0
        ),
    ] = 0,
    part: Annotated[
        str,
        typer.Option(
            help="Part of a public dataset that the node holds, in place of --data, e.g. 0/3."
        ),
    ] = "",
    port: Annotated[
        int,
        typer.Option(
            help="Loopback port for the node's own processes; 0: any free one.", min=0, max=65535
        ),
    ] = 0,
    print_only: PrintOnly = False,
) -> None:
    """Start a node. It connects to the SuperLink; no port of the node has to be open.

    Example: `pfsr deploy node --superlink server.example:9092 --ca ca.crt --key node.key
    --state state --name shop-1 --data shop.csv`
    """
    from pfsr.deploy.flower_commands import (
        check_private_key,
        free_port,
        node_command,
        node_data,
        split_address,
    )

    split_address(superlink)
    _require_file(ca, "copy ca.crt from the server")
    _require_file(key, f"pfsr deploy key {key}")
    check_private_key(key)
    config = {**node_data(name, data, part, clients), "state-dir": str(state.absolute())}
    flower_command = node_command(
        superlink,
        root_certificates=ca,
        private_key=key,
        node_config=config,
        loopback_port=port or free_port(),
    )
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    _run(flower_command, {"FLWR_HOME": str(state.absolute() / "flwr")}, print_only)


def flower_home() -> Path:
    """The directory whose ``config.toml`` holds Flower's connections."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def _write_profile(connection_name: str, control_address: str, authority_certificate: Path) -> None:
    from pfsr.deploy.flower_commands import split_address, write_profile

    split_address(control_address)
    _require_file(authority_certificate, "copy ca.crt from the server")
    config_path = write_profile(
        flower_home(), connection_name, control_address, authority_certificate
    )
    typer.echo(f"{config_path}   has the connection {connection_name!r} to {control_address}")


def _require_file(file_path: Path, fix: str) -> None:
    from pfsr.deploy.flower_commands import DeploymentError

    if not file_path.is_file():
        raise DeploymentError(f"{file_path}: no such file. Fix: {fix}.")


def _run(
    flower_command: Sequence[str], default_variables: Mapping[str, str], print_only: bool
) -> None:
    added_variables = _environment(default_variables)
    _print_command(flower_command, added_variables)
    if not print_only:
        _replace_process(flower_command, {**os.environ, **added_variables})


def _environment(default_variables: Mapping[str, str]) -> dict[str, str]:
    """Variables that Flower's processes need and the present environment does not set."""
    from pfsr.deploy.processes import QUIET, search_path

    quiet_variables = {name: value for name, value in QUIET.items() if name.startswith("FLWR_")}
    variables = {**quiet_variables, **default_variables}
    added_variables = {name: value for name, value in variables.items() if name not in os.environ}
    path_variable = search_path()
    if path_variable != os.environ.get("PATH"):
        added_variables["PATH"] = path_variable
    return added_variables


def _print_command(flower_command: Sequence[str], added_variables: Mapping[str, str]) -> None:
    if added_variables:
        assignments = (f"{name}={shlex.quote(value)}" for name, value in added_variables.items())
        typer.echo("$ export " + " ".join(assignments))
    typer.echo(f"$ {shlex.join(flower_command)}")


def _replace_process(flower_command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replaces this process by the command, so that signals and the exit status are its own."""
    sys.stdout.flush()
    os.execve(flower_command[0], list(flower_command), dict(environment))
