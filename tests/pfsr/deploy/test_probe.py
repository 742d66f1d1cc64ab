"""Why a node does not get through: each cause by its own words, against servers that are real."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from pfsr.cli.main import app
from pfsr.deploy import probe
from pfsr.deploy.findings import Finding
from pfsr.deploy.flower_commands import (
    make_authority,
    make_node_key,
    make_server_certificate,
    register_command,
    superlink_command,
    tool,
    write_profile,
)
from pfsr.deploy.probe import diagnose
from pfsr.deploy.processes import environment


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server certificate for localhost and 127.0.0.1."""
    directory = tmp_path_factory.mktemp("tls")
    make_authority(directory)
    make_server_certificate(directory, ["localhost"])
    return directory


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of another authority with the same name."""
    directory = tmp_path_factory.mktemp("stranger")
    make_authority(directory)
    return directory / "ca.crt"


@contextlib.contextmanager
def grpc_server(tls: Path | None) -> Iterator[int]:
    """gRPC without a service; its port."""
    server = grpc.server(ThreadPoolExecutor(1))
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        pair = ((tls / "server.key").read_bytes(), (tls / "server.crt").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


@contextlib.contextmanager
def http_server(tls: Path | None) -> Iterator[int]:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        server.handle_error = lambda *_: None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.crt", tls / "server.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def silent_server(greeting: bytes = b"") -> Iterator[int]:
    """Says ``greeting`` to everybody, and nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(listening.accept()[0])
                    kept[-1].sendall(greeting)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in kept:
        connection.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def last(findings: Sequence[Finding], subject: str) -> Finding:
    """The decisive finding: something is wrong, and there is a fix; all before it was right."""
    *before, found = findings
    assert {finding.level for finding in before} <= {"ok"}
    assert (found.level, found.subject) == ("missing", subject)
    assert found.fix
    return found


def test_nothing_listens() -> None:
    found = last(diagnose(f"127.0.0.1:{free_port()}", None, None), "connection")
    assert "nothing listens at 127.0.0.1" in found.found


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "unknown"), "the name server.example does not resolve"),
        (TimeoutError(), "no answer from server.example port 9092 in 5 s"),
        (OSError(113, "No route to host"), "out of reach: No route to host"),
    ],
)
def test_the_server_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(socket, "create_connection", connect)
    assert words in last(diagnose("server.example:9092", None, None), "connection").found


def test_tls_against_a_server_in_clear(tls: Path) -> None:
    with grpc_server(None) as port:
        found = last(diagnose(f"127.0.0.1:{port}", tls / "ca.crt", None), "language")
    assert found.found == "the server speaks in clear, TLS was asked for"


def test_in_clear_against_a_server_with_tls(tls: Path) -> None:
    with grpc_server(tls) as port:
        found = last(diagnose(f"127.0.0.1:{port}", None, None, insecure=True), "language")
    assert found.found == "the server speaks TLS, --insecure does not"


@pytest.mark.parametrize("insecure", [True, False])
@pytest.mark.parametrize("over_tls", [True, False])
def test_the_control_port_is_recognized(tls: Path, over_tls: bool, insecure: bool) -> None:
    with http_server(tls if over_tls else None) as port:
        found = last(diagnose(f"127.0.0.1:{port}", None, None, insecure=insecure), "language")
    assert "this looks like the control port" in found.found
    assert found.fix == "give the port for nodes: 9092"


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH\r\n"])
def test_something_else_listens(monkeypatch: pytest.MonkeyPatch, greeting: bytes) -> None:
    monkeypatch.setattr(probe, "CONNECT_SECONDS", 0.2)
    with silent_server(greeting) as port:
        found = last(diagnose(f"127.0.0.1:{port}", None, None), "language")
    assert found.found == "neither TLS nor gRPC is spoken there"


def test_wrong_authority(tls: Path, stranger: Path) -> None:
    with grpc_server(tls) as port:
        found = last(diagnose(f"localhost:{port}", stranger, None), "certificate")
        assert found.found.startswith("wrong CA: the server's certificate is not signed by ")
        assert str(stranger) in found.found
        found = last(diagnose(f"localhost:{port}", None, None), "certificate")
        assert "one the system trusts" in found.found


def test_certificate_for_another_name(tls: Path) -> None:
    with grpc_server(tls) as port:
        findings = diagnose(f"127.0.0.2:{port}", tls / "ca.crt", None)
        assert "nothing listens" in findings[-1].found, "it is bound to 127.0.0.1 alone"
    with grpc_server(tls) as port, forwarded("127.0.0.2", port) as other:
        found = last(diagnose(f"127.0.0.2:{other}", tls / "ca.crt", None), "certificate")
    assert "another name: it has localhost, 127.0.0.1, asked for was 127.0.0.2" in found.found
    assert found.fix.endswith("pfsr deploy certificate DIR --host 127.0.0.2")


@contextlib.contextmanager
def forwarded(host: str, port: int) -> Iterator[int]:
    """A port of ``host`` that leads to ``port`` of 127.0.0.1."""
    with socket.create_server((host, 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    near = listening.accept()[0]
                    far = socket.create_connection(("127.0.0.1", port))
                    for pair in ((near, far), (far, near)):
                        threading.Thread(target=pump, args=pair).start()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with source, contextlib.suppress(OSError):
        while data := source.recv(4096):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_expired_certificate(tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_server_certificate(tmp_path, ["localhost"], valid_days=0)
    with grpc_server(tmp_path) as port:
        found = last(diagnose(f"localhost:{port}", tmp_path / "ca.crt", None), "certificate")
    assert "has expired" in found.found
    assert "clock" in found.fix


def test_authority_that_cannot_be_read(tls: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.crt").touch()
    with grpc_server(tls) as port:
        found = last(diagnose(f"localhost:{port}", tmp_path / "gone.crt", None), "certificate")
        assert "gone.crt: no such file" in found.found
        found = last(diagnose(f"localhost:{port}", tmp_path / "empty.crt", None), "certificate")
        assert "empty.crt holds no certificate" in found.found


def test_a_grpc_server_that_is_no_superlink(tls: Path) -> None:
    with grpc_server(tls) as port:
        findings = diagnose(f"localhost:{port}", tls / "ca.crt", None)
    assert last(findings, "key").found == "a gRPC server, but no SuperLink"
    assert findings[2].found.startswith("for localhost, 127.0.0.1; valid until 20")


def test_a_proxy_that_only_grpc_takes(tls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("grpc_proxy", f"http://127.0.0.1:{free_port()}")
    with grpc_server(tls) as port:
        found = last(diagnose(f"localhost:{port}", tls / "ca.crt", None), "proxy")
    assert "no_proxy" in found.fix


def test_a_key_that_is_none(tls: Path, tmp_path: Path) -> None:
    make_node_key(tmp_path / "node")
    with grpc_server(tls) as port:
        for name in ("gone", "node.pub"):
            found = last(diagnose(f"localhost:{port}", tls / "ca.crt", tmp_path / name), "key")
            assert f"{name} is no private key of a node" in found.found


def test_the_command_names_the_cause_and_the_fix(tls: Path, stranger: Path) -> None:
    with grpc_server(tls) as port:
        words = ["doctor", "--superlink", f"localhost:{port}", "--root-certificates", str(stranger)]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok", "ok", "WRONG", "fix:"]
    assert "gets through" not in result.stdout


@dataclass(frozen=True)
class Link:
    """A SuperLink that runs, and what its command line needs."""

    fleet: int
    control: int
    environment: dict[str, str]

    def flwr(self, command: list[str]) -> str:
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def nodes(self) -> list[str]:
        """The status of every node that it knows."""
        command = [tool("flwr"), "supernode", "list", "fed", "--format", "json"]
        return [node["status"] for node in json.loads(self.flwr(command))["nodes"]]


@contextlib.contextmanager
def superlink(home: Path, tls: Path | None) -> Iterator[Link]:
    """Flower's own, on free ports of every address of this machine."""
    link = Link(free_port(), free_port(), environment(home))
    control = f"127.0.0.1:{link.control}"
    write_profile(home, "fed", control, tls / "ca.crt" if tls else None)
    command = superlink_command(tls, fleet_address=f"0.0.0.0:{link.fleet}", control_address=control)
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, env=link.environment, stdout=log, stderr=log)
        try:
            wait(lambda: listens(link.fleet) and listens(link.control))
            yield link
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not ready():
        assert time.monotonic() < deadline, "the SuperLink did not start"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def link(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with superlink(tmp_path_factory.mktemp("flwr"), tls) as running:
        yield running


@pytest.fixture(scope="module")
def open_link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with superlink(tmp_path_factory.mktemp("open"), None) as running:
        yield running


@pytest.fixture(scope="module")
def key(link: Link, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of a node that is registered."""
    path = tmp_path_factory.mktemp("key") / "node"
    make_node_key(path)
    link.flwr(register_command(path.with_name("node.pub"), "fed"))
    return path


real = [pytest.mark.slow, pytest.mark.network]


class TestASuperLinkWithTlsAndRegisteredNodes:
    pytestmark = real

    def test_all_is_well_and_nothing_is_changed(self, link: Link, tls: Path, key: Path) -> None:
        findings = diagnose(f"localhost:{link.fleet}", tls / "ca.crt", key)
        assert [finding.level for finding in findings] == ["ok"] * 4
        assert findings[-1].found == "registered: this node would be admitted"
        assert link.nodes() == ["registered"]

    def test_the_six_causes_have_six_messages(
        self, link: Link, tls: Path, key: Path, stranger: Path, tmp_path: Path
    ) -> None:
        make_node_key(tmp_path / "new")
        ca, address = tls / "ca.crt", f"localhost:{link.fleet}"
        causes = {
            "nothing listens": diagnose(f"localhost:{free_port()}", ca, key),
            "wrong CA": diagnose(address, stranger, key),
            "for another name": diagnose(f"127.0.0.2:{link.fleet}", ca, key),
            "this key is not registered": diagnose(address, ca, tmp_path / "new"),
            "no key, and the server admits registered nodes": diagnose(address, ca, None),
            "the server speaks TLS": diagnose(address, None, key, insecure=True),
        }
        for words, findings in causes.items():
            found = [finding.found for finding in findings if finding.level == "missing"]
            assert len(found) == 1
            assert words in found[0]
            assert sum(other in found[0] for other in causes) == 1
        assert link.nodes() == ["registered"], "nobody was added and nobody went online"

    def test_the_control_port(self, link: Link, tls: Path, key: Path) -> None:
        found = last(diagnose(f"localhost:{link.control}", tls / "ca.crt", key), "language")
        assert "HTTP over TLS, not gRPC: this looks like the control port" in found.found

    def test_clocks_that_differ(
        self, link: Link, tls: Path, key: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flwr.client.grpc_rere_client import node_auth_client_interceptor as interceptor

        now = interceptor.now
        monkeypatch.setattr(interceptor, "now", lambda: now() - timedelta(hours=1))
        found = last(diagnose(f"localhost:{link.fleet}", tls / "ca.crt", key), "clock")
        assert "clocks of node and server differ" in found.found


class TestAnOpenSuperLink:
    pytestmark = real

    def test_everybody_may_join_and_the_probe_leaves_again(self, open_link: Link) -> None:
        findings = diagnose(f"127.0.0.1:{open_link.fleet}", None, None, insecure=True)
        assert [finding.level for finding in findings] == ["ok", "ok", "note"]
        assert "whoever reaches this port can join" in findings[-1].found
        assert open_link.nodes() == ["unregistered"], "Flower lists who has left"

    def test_tls_is_refused_there(self, open_link: Link, tls: Path) -> None:
        found = last(diagnose(f"127.0.0.1:{open_link.fleet}", tls / "ca.crt", None), "language")
        assert found.found == "the server speaks in clear, TLS was asked for"

    def test_its_control_port(self, open_link: Link) -> None:
        found = last(diagnose(f"127.0.0.1:{open_link.control}", None, None), "language")
        assert "HTTP in clear, not gRPC: this looks like the control port" in found.found
