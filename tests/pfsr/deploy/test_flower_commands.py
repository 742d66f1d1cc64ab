"""Files of a federation over the network: certificates, keys, command lines, the profile."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import stat
import threading
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pfsr.deploy import flower_commands as deployment
from pfsr.deploy.flower_commands import (
    DeploymentError,
    make_authority,
    make_node_key,
    make_server_certificate,
    node_command,
    register_command,
    superlink_command,
    write_profile,
)


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    make_authority(tmp_path / "tls")
    return tmp_path / "tls"


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def handshake(directory: Path, name: str) -> str:
    """The TLS version of a connection to a server that has the certificate of ``directory``."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(directory / "server.crt", directory / "server.key")
    client = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=name) as connection:
            return str(connection.version())
    finally:
        ours.close()
        thread.join()


def test_private_keys_are_readable_by_their_owner_only(authority: Path) -> None:
    make_server_certificate(authority, ["localhost"])
    assert {mode(authority / name) for name in ("ca.key", "server.key")} == {0o600}
    assert sorted(path.name for path in authority.iterdir()) == [
        *("ca.crt", "ca.key", "server.crt", "server.key")
    ]


def test_an_authority_is_never_overwritten(authority: Path) -> None:
    before = (authority / "ca.key").read_bytes()
    with pytest.raises(DeploymentError, match="ca.key exists already. Fix: "):
        make_authority(authority)
    assert (authority / "ca.key").read_bytes() == before


def test_the_authority_may_sign_servers_and_no_other_authority(authority: Path) -> None:
    found = certificate(authority / "ca.crt").extensions
    constraints = found.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert found.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_a_server_certificate_has_its_names_and_its_purpose(authority: Path) -> None:
    make_server_certificate(authority, ["server.example", "10.0.0.7", "::1"], valid_days=30)
    found = certificate(authority / "server.crt")
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["server.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(text) for text in ("10.0.0.7", "::1", "127.0.0.1")
    ]
    purpose = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purpose) == [x509.ExtendedKeyUsageOID.SERVER_AUTH]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)


def test_a_strict_client_accepts_the_server_by_each_of_its_names(authority: Path) -> None:
    make_server_certificate(authority, ["server.example", "10.0.0.7"])
    for name in ("server.example", "10.0.0.7", "127.0.0.1"):
        assert handshake(authority, name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(authority, "other.example")


def test_a_server_certificate_can_be_renewed(authority: Path) -> None:
    make_server_certificate(authority, ["a.example"])
    first = certificate(authority / "server.crt")
    make_server_certificate(authority, ["b.example"])
    assert certificate(authority / "server.crt").serial_number != first.serial_number
    assert handshake(authority, "b.example") == "TLSv1.3"


@pytest.mark.parametrize("host", ["server:9092", "https://server", "", "a b"])
def test_what_is_no_host_is_refused(authority: Path, host: str) -> None:
    with pytest.raises(DeploymentError, match="is no host. Fix: "):
        make_server_certificate(authority, [host])
    assert not (authority / "server.crt").exists()


def test_a_server_certificate_needs_an_authority_and_a_host(authority: Path) -> None:
    with pytest.raises(DeploymentError, match="no host. Fix: "):
        make_server_certificate(authority, [])
    with pytest.raises(DeploymentError, match="no authority in .*pfsr deploy init"):
        make_server_certificate(authority / "elsewhere", ["localhost"])
    make_authority(authority / "other")
    (authority / "ca.key").write_bytes((authority / "other" / "ca.key").read_bytes())
    with pytest.raises(DeploymentError, match="ca.key is not the key of ca.crt"):
        make_server_certificate(authority, ["localhost"])


def test_a_node_key_is_one_that_flower_takes(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "node"
    make_node_key(path)
    private = serialization.load_ssh_private_key(path.read_bytes(), None)
    public = serialization.load_ssh_public_key(path.with_name("node.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert private.curve.name == "secp384r1"
    assert private.public_key() == public
    assert mode(path) == 0o600


@pytest.mark.parametrize("name", ["node", "node.pub"])
def test_a_node_key_is_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DeploymentError, match=f"{name} exists already"):
        make_node_key(tmp_path / "node")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_ssh_keygen_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "node_key_command", lambda path: ["no-such-program"])
    with pytest.raises(DeploymentError, match="ssh-keygen is not here. Fix: "):
        make_node_key(tmp_path / "node")


def test_superlink_with_tls_admits_registered_nodes_only(tmp_path: Path) -> None:
    program, *words = superlink_command(tmp_path, database_file=tmp_path / "state.db")
    assert Path(program).name == "flower-superlink"
    assert words == [
        *("--host", "127.0.0.1", "--port", "8000", "--fleet-api-address", "0.0.0.0:9092"),
        *("--database", str(tmp_path / "state.db")),
        *("--ssl-ca-certfile", str(tmp_path / "ca.crt")),
        *("--ssl-certfile", str(tmp_path / "server.crt")),
        *("--ssl-keyfile", str(tmp_path / "server.key"), "--enable-supernode-auth"),
    ]


def test_superlink_in_clear_says_so() -> None:
    words = superlink_command(None, fleet_address="a:1", control_address="[::1]:2")[1:]
    assert words == ["--host", "::1", "--port", "2", "--fleet-api-address", "a:1", "--insecure"]


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":8000", "a:b", "a:0", "a:70000"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(DeploymentError, match="is no address. Fix: write HOST:PORT"):
        superlink_command(None, control_address=address)


def test_node_with_key_and_data(tmp_path: Path) -> None:
    config = {"partition-id": 1, "data-path": str(tmp_path / "my data.csv"), "a": True, "b": 0.5}
    program, *words = node_command(
        "server:9092",
        root_certificates=tmp_path / "ca.crt",
        private_key=tmp_path / "node",
        node_config=config,
        loopback_port=9095,
    )
    assert Path(program).name == "flower-supernode"
    assert words[:-2] == [
        *("--superlink", "server:9092", "--port", "9095"),
        *("--root-certificates", str(tmp_path / "ca.crt")),
        *("--auth-supernode-private-key", str(tmp_path / "node")),
    ]
    assert words[-2] == "--node-config"
    assert words[-1] == f'partition-id=1 data-path="{tmp_path}/my data.csv" a=true b=0.5'


def test_flower_reads_the_node_config_back() -> None:
    from flwr.common.config import parse_config_args

    config: dict[str, bool | int | float | str] = {
        "data-path": "/a b/c=d.csv",
        "name": 'the "first"',
        "state-dir": "C:\\node",
        "owner": "node's",
        "partition-id": 3,
        "last": False,
    }
    words = node_command("a:1", root_certificates=None, private_key=None, node_config=config)
    assert "--insecure" in words
    assert parse_config_args([words[-1]]) == config


@pytest.mark.parametrize("config", [{"a": "\"'"}, {"a": "x\ny"}, {"a b": 1}, {"a": "\\'"}])
def test_a_node_config_that_flower_cannot_read_is_refused(config: dict[str, str]) -> None:
    with pytest.raises(DeploymentError, match="node config .* Fix: "):
        node_command("a:1", root_certificates=None, private_key=None, node_config=config)


def test_register(tmp_path: Path) -> None:
    program, *words = register_command(tmp_path / "node.pub", "fed")
    assert Path(program).name == "flwr"
    assert words == ["supernode", "register", str(tmp_path / "node.pub"), "fed"]


def test_a_new_profile_keeps_what_flower_would_have_written(tmp_path: Path) -> None:
    path = write_profile(tmp_path / "home", "fed", "127.0.0.1:8000", Path("/tls/ca.crt"))
    assert path == tmp_path / "home" / "config.toml"
    assert tomllib.loads(path.read_text())["superlink"] == {
        "default": "local",
        "local": {"address": ":local:"},
        "fed": {"address": "127.0.0.1:8000", "root-certificates": "/tls/ca.crt"},
    }


OTHERS = """# mine
[superlink]
default = "other"

[superlink.fed-2]  # not this one
address = "b:1"
"""
OLD = '[superlink.fed]\naddress = "old:1"\n\n[superlink.fed.options]\nnum-supernodes = 2\n'


@pytest.mark.parametrize("before", [OTHERS, f"{OTHERS}\n{OLD}", f"{OLD}\n{OTHERS}"])
def test_a_profile_is_replaced_and_the_rest_kept(tmp_path: Path, before: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(before)
    write_profile(tmp_path, "fed", "new:1", None)
    assert path.read_text() == f'{OTHERS}\n[superlink.fed]\naddress = "new:1"\ninsecure = true\n'


@pytest.mark.parametrize(
    "text", ["[superlink", 'superlink.fed = {address = "a:1"}\n', 'superlink = "x"\n']
)
def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(DeploymentError, match="config.toml cannot be changed safely"):
        write_profile(tmp_path, "fed", "new:1", None)
    assert path.read_text() == text


def test_a_connection_has_a_plain_name(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="connection 'my fed'"):
        write_profile(tmp_path, "my fed", "new:1", None)


def test_flower_reads_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.cli.flower_config import read_superlink_connection

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    write_profile(tmp_path, "fed", "127.0.0.1:8000", tmp_path / "ca.crt")
    found = read_superlink_connection("fed")
    assert (found.address, found.root_certificates) == ("127.0.0.1:8000", f"{tmp_path}/ca.crt")
    assert not found.insecure
