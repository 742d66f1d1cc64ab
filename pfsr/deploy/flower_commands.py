"""Keys, Flower command lines and the connection profile of a federation over the network.

Only files and command lines are made here; docs/guides/deployment.md says who runs what where.
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


def make_node_key(key_path: Path) -> None:
    """Writes a node's key pair: the private half (mode 0600), and the public one beside it.

    Args:
        key_path: The private half, which never leaves the node; the public one ends in ``.pub``.

    Raises:
        DeploymentError: When one of the files exists, since a node is known by its key, and without
            ssh-keygen.
    """
    refuse_overwriting(key_path, public_key_path(key_path))
    key_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        keygen_result = subprocess.run(
            node_key_command(key_path), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise DeploymentError("ssh-keygen is not here. Fix: install OpenSSH's client.") from None
    if keygen_result.returncode != 0:
        raise DeploymentError(
            f"ssh-keygen could not write {key_path}: {keygen_result.stderr.strip()}"
        )


def node_key_command(key_path: Path) -> list[str]:
    """The ssh-keygen command: a NIST curve, which Flower asks for, and no passphrase."""
    base_command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", ""]
    return [*base_command, "-C", "pfsr-node", "-f", str(key_path)]


def public_key_path(key_path: Path) -> Path:
    """The file of the public half, as ssh-keygen names it."""
    return key_path.with_name(key_path.name + ".pub")


def superlink_command(
    certificate_directory: Path | None,
    *,
    fleet_address: str = "0.0.0.0:9092",
    control_address: str = f"{LOOPBACK}:8000",
    database_file: Path | None = None,
) -> list[str]:
    """The command that starts the SuperLink.

    Args:
        certificate_directory: Of the certificates; then TLS is on and registered nodes alone are
            admitted. None for a SuperLink without TLS that admits every node.
        fleet_address: HOST:PORT that nodes connect to.
        control_address: HOST:PORT where runs are started. A process that reaches it can run code
            on every node, therefore loopback.
        database_file: File that keeps registrations and runs over a restart.
    """
    control_host, control_port = split_address(control_address)
    command = [tool("flower-superlink"), "--host", control_host, "--port", str(control_port)]
    command += ["--fleet-api-address", fleet_address]
    if database_file is not None:
        command += ["--database", str(database_file.absolute())]
    if certificate_directory is None:
        return [*command, "--insecure"]
    for tls_option, file_name in TLS_FILES.items():
        command += [tls_option, str((certificate_directory / file_name).absolute())]
    return [*command, "--enable-supernode-auth"]


def node_command(
    superlink_address: str,
    *,
    root_certificates: Path | None,
    private_key: Path | None,
    node_config: Mapping[str, bool | int | float | str],
    loopback_port: int = 9094,
) -> list[str]:
    """The command that starts a SuperNode.

    Args:
        superlink_address: HOST:PORT of the SuperLink's fleet API.
        root_certificates: The ca.crt of the federation; None for a connection without TLS.
        private_key: The node's private key; None where the SuperLink asks for none.
        node_config: What the ClientApp finds in ``context.node_config``.
        loopback_port: For the node's own processes, different for every node of a machine.

    Raises:
        DeploymentError: For a node config that Flower cannot read.
    """
    command = [
        tool("flower-supernode"),
        "--superlink",
        superlink_address,
        "--port",
        str(loopback_port),
    ]
    if root_certificates is None:
        command.append("--insecure")
    else:
        command += ["--root-certificates", str(root_certificates.absolute())]
    if private_key is not None:
        command += ["--auth-supernode-private-key", str(private_key.absolute())]
    if node_config:
        config_pairs = (
            f"{config_key}={_node_value(config_key, config_value)}"
            for config_key, config_value in node_config.items()
        )
        command += ["--node-config", " ".join(config_pairs)]
    return command


def register_command(public_key: Path, connection_name: str) -> list[str]:
    """The command that admits a node; it needs the control port."""
    return [tool("flwr"), "supernode", "register", str(public_key.absolute()), connection_name]


def write_profile(
    flwr_home: Path, connection_name: str, superlink_address: str, root_certificates: Path | None
) -> Path:
    """Adds or replaces ``[superlink.NAME]`` in Flower's ``config.toml``; returns its path.

    Everything else in the file stays as it is, comments too.

    Raises:
        DeploymentError: For a file that is not TOML, or that defines NAME otherwise than as a
            table.
    """
    if not _PLAIN_NAME.fullmatch(connection_name):
        raise DeploymentError(
            f"connection {connection_name!r}. Fix: use letters, digits, - and _ only."
        )
    config_path = flwr_home / "config.toml"
    profile_entry: dict[str, Any] = {"address": superlink_address, "insecure": True}
    if root_certificates is not None:
        profile_entry = {
            "address": superlink_address,
            "root-certificates": str(root_certificates.absolute()),
        }
    old_text = config_path.read_text("utf-8") if config_path.exists() else NEW_PROFILES
    entry_lines = "".join(
        f"{entry_key} = {json.dumps(entry_value)}\n"
        for entry_key, entry_value in profile_entry.items()
    )
    other_text = _without_table(old_text, connection_name).rstrip()
    new_text = f"{other_text}\n\n[superlink.{connection_name}]\n{entry_lines}".lstrip()
    _check_only_change(config_path, old_text, new_text, connection_name, profile_entry)
    flwr_home.mkdir(parents=True, exist_ok=True)
    config_path.write_text(new_text, "utf-8")
    return config_path


def tool(program_name: str) -> str:
    """Path of a program of this Python environment, activated or not. Raises DeploymentError."""
    program_path = Path(sys.executable).parent / program_name
    if not program_path.exists():
        raise DeploymentError(f'{program_path} is missing. Fix: pip install "flwr>=1.39,<1.40"')
    return str(program_path)


def check_public_key(key_path: Path) -> None:
    """Raises DeploymentError for a private key: it is not to leave its node."""
    if _is_private(key_path):
        raise DeploymentError(
            f"{key_path} is a private key, which never leaves its node. Fix: give its public half, "
            f"{public_key_path(key_path).name}."
        )


def check_private_key(key_path: Path) -> None:
    """Raises DeploymentError for anything else than a private key."""
    if not _is_private(key_path):
        raise DeploymentError(
            f"{key_path} is no private key. Fix: give the file that pfsr deploy key made, "
            f"without .pub."
        )


def _is_private(key_path: Path) -> bool:
    return b"PRIVATE KEY-----" in key_path.read_bytes()[:100]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, an IPv6 address in brackets. Raises DeploymentError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DeploymentError(f"{address!r} is no address. Fix: write HOST:PORT, as host:9092.")
    return host, int(port)


def node_data(
    node_name: str, data_file: Path | None, dataset_part: str, num_clients: int = 0
) -> dict[str, bool | int | float | str]:
    """The node config that says which data a node has.

    Args:
        node_name: Name of a node with a file of its own, else "".
        data_file: The node's own file, None for a part.
        dataset_part: The node's part of a public dataset, as "0/3"; "" for a file.
        num_clients: Number of clients that the users of the file form; 0 leaves that to the run.

    Raises:
        DeploymentError: Unless ``data_file`` with ``node_name``, or ``dataset_part``, is given.
    """
    if (data_file is None) == (not dataset_part):
        raise DeploymentError("which data? Fix: either --data FILE with --name, or --part I/N.")
    if data_file is not None:
        if not data_file.is_file():
            raise DeploymentError(f"{data_file}: no such file. Fix: give the node's own data.")
        if not _PLAIN_NAME.fullmatch(node_name):
            fix = "give --name, of letters, digits, - and _, different for every node"
            raise DeploymentError(
                f"a node with data of its own has a name, not {node_name!r}. Fix: {fix}."
            )
        own_config = {
            "name": node_name,
            "data-path": str(data_file.absolute()),
            "data-source": "file",
        }
        return {**own_config, "clients": num_clients} if num_clients else dict(own_config)
    if num_clients:
        raise DeploymentError(
            "--clients groups the users of a node's own file. Fix: leave it out; with --part the "
            "run's federation.clients says how many there are."
        )
    part_number, _, num_parts = dataset_part.partition("/")
    is_number = part_number.isdecimal() and num_parts.isdecimal()
    if node_name or not is_number or int(part_number) >= int(num_parts):
        raise DeploymentError(
            f"part {dataset_part!r}, name {node_name!r}. Fix: parts count from 0, as 0/3, "
            f"1/3, 2/3, and need no name."
        )
    return {"partition-id": int(part_number), "num-partitions": int(num_parts)}


def free_port() -> int:
    """A free port of loopback; two nodes that start at once get different ones."""
    with socket.socket() as probe_socket:
        probe_socket.bind((LOOPBACK, 0))
        return int(probe_socket.getsockname()[1])


def _node_value(config_key: str, config_value: bool | int | float | str) -> str:
    """A value as Flower parses it: TOML, without quotation marks of the kind that encloses it."""
    if not _PLAIN_NAME.fullmatch(config_key):
        raise DeploymentError(
            f"node config {config_key!r}. Fix: use letters, digits, - and _ only."
        )
    if not isinstance(config_value, str):
        return str(config_value).lower() if isinstance(config_value, bool) else repr(config_value)
    if (
        "\n" in config_value
        or ('"' in config_value and "'" in config_value)
        or ("\\" in config_value and "'" in config_value)
    ):
        raise DeploymentError(
            f"node config {config_key} = {config_value!r} has quotes. Fix: rename the file."
        )
    needs_literal = '"' in config_value or "\\" in config_value
    return f"'{config_value}'" if needs_literal else f'"{config_value}"'


def _without_table(config_text: str, connection_name: str) -> str:
    """The file's text without a connection's table and sub-tables, but with the comments there."""
    table_header = re.compile(rf'\s*\[\s*superlink\s*\.\s*"?{re.escape(connection_name)}"?\s*[.\]]')
    kept_lines, in_table = [], False
    for text_line in config_text.splitlines(keepends=True):
        if text_line.lstrip().startswith("["):
            in_table = table_header.match(text_line) is not None
        if not in_table or text_line.startswith("#"):
            kept_lines.append(text_line)
    return "".join(kept_lines)


def _check_only_change(
    config_path: Path,
    old_text: str,
    new_text: str,
    connection_name: str,
    profile_entry: Mapping[str, Any],
) -> None:
    """Raises DeploymentError unless ``new_text`` differs from ``old_text`` in this one table."""
    fix = f"write [superlink.{connection_name}] into it by hand"
    try:
        expected_tables = tomllib.loads(old_text)
        expected_tables.setdefault("superlink", {})[connection_name] = dict(profile_entry)
        changed_tables = tomllib.loads(new_text)
    except (tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise DeploymentError(
            f"{config_path} cannot be changed safely ({error}). Fix: {fix}."
        ) from None
    if changed_tables != expected_tables:
        raise DeploymentError(f"{config_path} cannot be changed safely. Fix: {fix}.")
