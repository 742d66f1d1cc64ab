"""``pfsr deploy``: a federation over gRPC with TLS and registered nodes, by Flower's own commands.

Each command prints the Flower command it runs, with the environment that it adds, so that it can
be copied into a service file.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pfsr.cli.errors import plain_errors

CONNECTION = "pfsr"
FLEET = "0.0.0.0:9092"
CONTROL = "127.0.0.1:8000"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""A federation over the network: certificates, keys, registration, SuperLink, nodes.

docs/deployment.md has the whole story. In short:

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
Hosts = Annotated[
    list[str],
    typer.Option("--host", help="Name or IP address by which nodes reach it; may be repeated."),
]
Connection = Annotated[str, typer.Option(help="Name of the connection in Flower's config.toml.")]
Control = Annotated[str, typer.Option(help="Where runs are started and nodes registered.")]
Certificate = Annotated[Path, typer.Option("--ca", help="The ca.crt of the federation.")]
PrintOnly = Annotated[bool, typer.Option("--print-only", help="Print the command, do not run it.")]


def deployment_errors() -> tuple[type[Exception], ...]:
    """What a person can put right."""
    from pfsr.deploy.flower_commands import DeploymentError

    return (DeploymentError, OSError)


plain = plain_errors(deployment_errors)


@app.command()
@plain
def init(
    directory: Directory,
    host: Hosts,
    connection: Connection = CONNECTION,
    control: Control = CONTROL,
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
    _profile(connection, control, directory / "ca.crt")
    typer.echo(f"next: pfsr deploy superlink {directory}")


@app.command()
@plain
def certificate(directory: Directory, host: Hosts) -> None:
    """Make the server's certificate again: renewed, or with other names. Nodes notice nothing.

    DIRECTORY is that of pfsr deploy init.

    Example: `pfsr deploy certificate tls --host server.example`
    """
    from pfsr.deploy.flower_commands import make_server_certificate

    make_server_certificate(directory, host)
    typer.echo(f"{directory}/server.crt, server.key   written; restart the SuperLink")


@app.command()
@plain
def profile(
    ca: Certificate, connection: Connection = CONNECTION, control: Control = CONTROL
) -> None:
    """Write the connection into Flower's config.toml, on a machine that starts runs.

    Its control address is that of the near end of a tunnel, see docs/deployment.md.

    Example: `pfsr deploy profile --ca ca.crt --control 127.0.0.1:8000`
    """
    _profile(connection, control, ca)


@app.command()
@plain
def superlink(
    directory: Directory,
    fleet: Annotated[str, typer.Option(help="Where nodes call: the one port to open.")] = FLEET,
    control: Control = CONTROL,
    database: Annotated[
        Path | None, typer.Option(help="Registrations and runs; else DIRECTORY/superlink.db.")
    ] = None,
    print_only: PrintOnly = False,
) -> None:
    """Start the SuperLink with TLS; it admits registered nodes only.

    DIRECTORY is that of pfsr deploy init.

    Example: `pfsr deploy superlink tls`
    """
    from pfsr.deploy.flower_commands import split_address, superlink_command

    split_address(fleet)
    _need(directory / "server.crt", f"pfsr deploy init {directory} --host NAME")
    kept = database or directory / "superlink.db"
    command = superlink_command(directory, fleet=fleet, control=control, database=kept)
    _run(command, {}, print_only)


@app.command()
@plain
def key(
    path: Annotated[Path, typer.Argument()],
) -> None:
    """Make a node's key, on the node. The private half never leaves it.

    PATH is where the private key is written; PATH.pub is written beside it.

    Example: `pfsr deploy key node.key`
    """
    from pfsr.deploy.flower_commands import make_node_key, node_key_command, public_key_path

    make_node_key(path)
    _say(node_key_command(path), {})
    public = public_key_path(path)
    typer.echo(f"next, at the server with this file: pfsr deploy register {public.name}")


@app.command()
@plain
def register(
    public_key: Annotated[Path, typer.Argument()],
    connection: Connection = CONNECTION,
    print_only: PrintOnly = False,
) -> None:
    """Admit a node, while the SuperLink runs.

    PUBLIC_KEY is the .pub of the node.

    Example: `pfsr deploy register node.key.pub`
    """
    from pfsr.deploy.flower_commands import check_public_key, register_command

    _need(public_key, "pfsr deploy key PATH on the node, then bring PATH.pub here")
    check_public_key(public_key)
    _run(register_command(public_key, connection), {}, print_only)


@app.command()
@plain
def node(  # noqa: PLR0913, PLR0917 - an option each
    superlink: Annotated[str, typer.Option(help="The SuperLink's port for nodes, HOST:9092.")],
    ca: Certificate,
    key: Annotated[Path, typer.Option(help="This node's private key.")],
    state: Annotated[Path, typer.Option(help="Directory for what this node remembers.")],
    name: Annotated[str, typer.Option(help="Of a node with data of its own.")] = "",
    data: Annotated[Path | None, typer.Option(help="Its data: CSV, Parquet, ...")] = None,
    clients: Annotated[
        int, typer.Option(help="Group its users into so many; else as the run says.", min=0)
    ] = 0,
    part: Annotated[str, typer.Option(help="Or its part of a public set: 0/3, 1/3, 2/3.")] = "",
    port: Annotated[
        int,
        typer.Option(help="On loopback, for its own processes; 0: any free one.", min=0, max=65535),
    ] = 0,
    print_only: PrintOnly = False,
) -> None:
    """Start a node. It calls the SuperLink; nothing has to reach it from outside.

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
    _need(ca, "copy ca.crt from the server")
    _need(key, f"pfsr deploy key {key}")
    check_private_key(key)
    config = {**node_data(name, data, part, clients), "state-dir": str(state.absolute())}
    command = node_command(
        superlink,
        root_certificates=ca,
        key=key,
        node_config=config,
        port=port or free_port(),
    )
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    _run(command, {"FLWR_HOME": str(state.absolute() / "flwr")}, print_only)


def flower_home() -> Path:
    """Where Flower reads connections."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")


def _profile(connection: str, control: str, ca: Path) -> None:
    from pfsr.deploy.flower_commands import split_address, write_profile

    split_address(control)
    _need(ca, "copy ca.crt from the server")
    path = write_profile(flower_home(), connection, control, ca)
    typer.echo(f"{path}   has the connection {connection!r} to {control}")


def _need(path: Path, fix: str) -> None:
    from pfsr.deploy.flower_commands import DeploymentError

    if not path.is_file():
        raise DeploymentError(f"{path}: no such file. Fix: {fix}.")


def _run(command: Sequence[str], defaults: Mapping[str, str], print_only: bool) -> None:
    added = _environment(defaults)
    _say(command, added)
    if not print_only:
        _become(command, {**os.environ, **added})


def _environment(defaults: Mapping[str, str]) -> dict[str, str]:
    """What Flower's processes need beyond the present environment, which has the last word."""
    from pfsr.deploy.processes import QUIET, search_path

    quiet = {name: value for name, value in QUIET.items() if name.startswith("FLWR_")}
    added = {k: v for k, v in {**quiet, **defaults}.items() if k not in os.environ}
    path = search_path()
    return added if path == os.environ.get("PATH") else {**added, "PATH": path}


def _say(command: Sequence[str], added: Mapping[str, str]) -> None:
    if added:
        typer.echo("$ export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in added.items()))
    typer.echo(f"$ {shlex.join(command)}")


def _become(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """This process is Flower's from here on: signals and the exit status are its own."""
    sys.stdout.flush()
    os.execve(command[0], list(command), dict(environment))
