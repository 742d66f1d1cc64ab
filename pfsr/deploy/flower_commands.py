"""Keys, Flower command lines and the connection profile of a federation over the network.

Only files and command lines are made here; docs/deployment.md says who runs what where.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfsr.deploy.certificates import (
    LOOPBACK,
    DeploymentError,
    make_authority,
    make_server_certificate,
    refuse_overwriting,
)

__all__ = [
    "DeploymentError",
    "free_port",
    "make_authority",
    "make_node_key",
    "make_server_certificate",
    "node_command",
    "node_data",
    "node_key_command",
    "public_key_path",
    "register_command",
    "split_address",
    "superlink_command",
    "tool",
    "write_profile",
]

TLS_FILES = {
    "--ssl-ca-certfile": "ca.crt",
    "--ssl-certfile": "server.crt",
    "--ssl-keyfile": "server.key",
}
# What Flower would write into a new file.
NEW_PROFILES = '[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = ":local:"\n'
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-]+")


def make_node_key(path: Path) -> None:
    """Writes a node's key pair: ``path`` (mode 0600) and ``path.pub``, which alone leaves the node.

    Raises:
        DeploymentError: When one of the files exists, since a node is known by its key, and without
            ssh-keygen.
    """
    refuse_overwriting(path, public_key_path(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(node_key_command(path), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DeploymentError("ssh-keygen is not here. Fix: install OpenSSH's client.") from None
    if done.returncode != 0:
        raise DeploymentError(f"ssh-keygen could not write {path}: {done.stderr.strip()}")


def node_key_command(path: Path) -> list[str]:
    """The ssh-keygen command: a NIST curve, which Flower asks for, and no passphrase."""
    words = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", ""]
    return [*words, "-C", "pfsr-node", "-f", str(path)]


def public_key_path(path: Path) -> Path:
    """The file of the public half, as ssh-keygen names it."""
    return path.with_name(path.name + ".pub")


def superlink_command(
    directory: Path | None,
    *,
    fleet: str = "0.0.0.0:9092",
    control: str = f"{LOOPBACK}:8000",
    database: Path | None = None,
) -> list[str]:
    """The command that starts the SuperLink.

    Args:
        directory: Of the certificates; then TLS is on and registered nodes alone are admitted. None
            for a SuperLink without TLS that admits anybody.
        fleet: HOST:PORT that nodes connect to.
        control: HOST:PORT where runs are started. Whoever reaches it can run code on every node,
            therefore loopback.
        database: File that keeps registrations and runs over a restart.
    """
    host, port = split_address(control)
    command = [tool("flower-superlink"), "--host", host, "--port", str(port)]
    command += ["--fleet-api-address", fleet]
    if database is not None:
        command += ["--database", str(database.absolute())]
    if directory is None:
        return [*command, "--insecure"]
    for option, name in TLS_FILES.items():
        command += [option, str((directory / name).absolute())]
    return [*command, "--enable-supernode-auth"]


def node_command(
    superlink: str,
    *,
    root_certificates: Path | None,
    key: Path | None,
    node_config: Mapping[str, bool | int | float | str],
    port: int = 9094,
) -> list[str]:
    """The command that starts a SuperNode.

    Args:
        superlink: HOST:PORT of the SuperLink's fleet API.
        root_certificates: The ca.crt of the federation; None for a connection without TLS.
        key: The node's private key; None where the SuperLink asks for none.
        node_config: What the ClientApp finds in ``context.node_config``.
        port: Loopback port for the node's own processes, different for every node of a machine.

    Raises:
        DeploymentError: For a node config that Flower cannot read.
    """
    command = [tool("flower-supernode"), "--superlink", superlink, "--port", str(port)]
    if root_certificates is None:
        command.append("--insecure")
    else:
        command += ["--root-certificates", str(root_certificates.absolute())]
    if key is not None:
        command += ["--auth-supernode-private-key", str(key.absolute())]
    if node_config:
        pairs = (f"{name}={_node_value(name, value)}" for name, value in node_config.items())
        command += ["--node-config", " ".join(pairs)]
    return command


def register_command(public_key: Path, connection: str) -> list[str]:
    """The command that admits a node; it needs the control port."""
    return [tool("flwr"), "supernode", "register", str(public_key.absolute()), connection]


def write_profile(flwr_home: Path, name: str, address: str, root_certificates: Path | None) -> Path:
    """Adds or replaces ``[superlink.NAME]`` in Flower's ``config.toml``; returns its path.

    Everything else in the file stays as it is, comments too.

    Raises:
        DeploymentError: For a file that is not TOML, or that defines NAME otherwise than as a
            table.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise DeploymentError(f"connection {name!r}. Fix: use letters, digits, - and _ only.")
    path = flwr_home / "config.toml"
    entry: dict[str, Any] = {"address": address, "insecure": True}
    if root_certificates is not None:
        entry = {"address": address, "root-certificates": str(root_certificates.absolute())}
    before = path.read_text("utf-8") if path.exists() else NEW_PROFILES
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())
    kept = _without_table(before, name).rstrip()
    after = f"{kept}\n\n[superlink.{name}]\n{lines}".lstrip()
    _check_only_change(path, before, after, name, entry)
    flwr_home.mkdir(parents=True, exist_ok=True)
    path.write_text(after, "utf-8")
    return path


def tool(name: str) -> str:
    """Path of a program of this Python environment, activated or not. Raises DeploymentError."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise DeploymentError(f'{path} is missing. Fix: pip install "flwr>=1.39,<1.40"')
    return str(path)


def check_public_key(path: Path) -> None:
    """Raises DeploymentError for a private key: it is not to leave its node."""
    if _is_private(path):
        raise DeploymentError(
            f"{path} is a private key, which never leaves its node. Fix: give its public half, "
            f"{public_key_path(path).name}."
        )


def check_private_key(path: Path) -> None:
    """Raises DeploymentError for anything else than a private key."""
    if not _is_private(path):
        raise DeploymentError(
            f"{path} is no private key. Fix: give the file that pfsr deploy key made, without .pub."
        )


def _is_private(path: Path) -> bool:
    return b"PRIVATE KEY-----" in path.read_bytes()[:100]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, an IPv6 address in brackets. Raises DeploymentError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DeploymentError(f"{address!r} is no address. Fix: write HOST:PORT, as host:9092.")
    return host, int(port)


def node_data(
    name: str, data: Path | None, part: str, clients: int = 0
) -> dict[str, bool | int | float | str]:
    """The node config that says which data a node has.

    Args:
        name: Name of a node with a file of its own, else "".
        data: The node's own file, None for a part.
        part: The node's part of a public dataset, as "0/3"; "" for a file.
        clients: Number of clients that the users of the file form; 0 leaves that to the run.

    Raises:
        DeploymentError: Unless either ``data`` with ``name`` or ``part`` is given.
    """
    if (data is None) == (not part):
        raise DeploymentError("which data? Fix: either --data FILE with --name, or --part I/N.")
    if data is not None:
        if not data.is_file():
            raise DeploymentError(f"{data}: no such file. Fix: give the node's own data.")
        if not _PLAIN_NAME.fullmatch(name):
            fix = "give --name, of letters, digits, - and _, different for every node"
            raise DeploymentError(
                f"a node with data of its own has a name, not {name!r}. Fix: {fix}."
            )
        own = {"name": name, "data-path": str(data.absolute()), "data-source": "file"}
        return {**own, "clients": clients} if clients else dict(own)
    if clients:
        raise DeploymentError(
            "--clients groups the users of a node's own file. Fix: leave it out; with --part the "
            "run's federation.clients says how many there are."
        )
    number, _, of = part.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)) or name:
        raise DeploymentError(
            f"part {part!r}, name {name!r}. Fix: parts count from 0, as 0/3, 1/3, 2/3, "
            f"and need no name."
        )
    return {"partition-id": int(number), "num-partitions": int(of)}


def free_port() -> int:
    """A free port of loopback; two nodes that start at once get different ones."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _node_value(name: str, value: bool | int | float | str) -> str:
    """A value as Flower parses it: TOML, without quotation marks of the kind that encloses it."""
    if not _PLAIN_NAME.fullmatch(name):
        raise DeploymentError(f"node config {name!r}. Fix: use letters, digits, - and _ only.")
    if not isinstance(value, str):
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if "\n" in value or ('"' in value and "'" in value) or ("\\" in value and "'" in value):
        raise DeploymentError(f"node config {name} = {value!r} has quotes. Fix: rename the file.")
    literal = '"' in value or "\\" in value
    return f"'{value}'" if literal else f'"{value}"'


def _without_table(text: str, name: str) -> str:
    """The file's text without a connection's table and sub-tables, but with the comments there."""
    header = re.compile(rf'\s*\[\s*superlink\s*\.\s*"?{re.escape(name)}"?\s*[.\]]')
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("["):
            inside = header.match(line) is not None
        if not inside or line.startswith("#"):
            kept.append(line)
    return "".join(kept)


def _check_only_change(
    path: Path, before: str, after: str, name: str, entry: Mapping[str, Any]
) -> None:
    """Raises DeploymentError unless ``after`` differs from ``before`` in this one table."""
    fix = f"write [superlink.{name}] into it by hand"
    try:
        expected = tomllib.loads(before)
        expected.setdefault("superlink", {})[name] = dict(entry)
        found = tomllib.loads(after)
    except (tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise DeploymentError(f"{path} cannot be changed safely ({error}). Fix: {fix}.") from None
    if found != expected:
        raise DeploymentError(f"{path} cannot be changed safely. Fix: {fix}.")
