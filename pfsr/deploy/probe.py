"""Diagnosis of a node's connection to the SuperLink, for which Flower has a single error message.

Checks from the outside in, up to the first that fails: name, connection, language (TLS or not, gRPC
or not), certificate, key. No node goes online by it, with one exception: a SuperLink that admits
anybody can only be asked by joining, and then lists one more node that has left.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pfsr.deploy.findings import Finding
from pfsr.deploy.flower_commands import split_address

SECONDS = 5.0  # for each connection and each answer
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS_FRAME = 4  # the first frame of whoever speaks HTTP/2
HANDSHAKE_ERRORS = (ssl.SSLError, ConnectionError, TimeoutError)
EXPIRED, NOT_YET_VALID = 10, 9  # OpenSSL's X509_V_ERR_...
OTHER_NAME = (62, 64)  # of a host, of an IP address

Language = Literal["gRPC over TLS", "HTTP over TLS", "gRPC in clear", "HTTP in clear", "unknown"]


@dataclass(frozen=True)
class Server:
    """What answers at an address; ``certificate`` is DER, empty without TLS."""

    host: str
    port: int
    language: Language
    certificate: bytes = b""

    @property
    def address(self) -> str:
        """HOST:PORT, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def diagnose(
    address: str, root_certificates: Path | None, key: Path | None, *, insecure: bool = False
) -> list[Finding]:
    """What a SuperNode with these arguments would meet at the SuperLink.

    Args:
        address: HOST:PORT of the SuperLink's fleet API.
        root_certificates: The node's ca.crt; None for the system's authorities, as for Flower.
        key: The node's private key, None for none.
        insecure: Whether the node connects without TLS.

    Returns:
        A finding for each check, of which the last one decides.

    Raises:
        DeploymentError: For an address that is not HOST:PORT.
    """
    from pfsr.deploy.probe_keys import key_finding

    host, port = split_address(address)
    findings = [_connection_finding(host, port)]
    if findings[-1].level != "ok":
        return findings
    server = Server(host, port, *_language(host, port))
    findings.append(_language_finding(server, insecure))
    if findings[-1].level == "ok" and not insecure:
        findings.append(_certificate_finding(server, root_certificates))
    if findings[-1].level == "ok":
        findings.append(key_finding(server.address, root_certificates, key, insecure=insecure))
    return findings


def _connection_finding(host: str, port: int) -> Finding:
    """Whether the name resolves, and anything listens there."""
    place = f"{host} port {port}"
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except (socket.gaierror, UnicodeError):
        fix = "check the spelling and the name service, or give the IP address"
        return Finding("missing", "connection", f"the name {host} does not resolve", fix)
    except ConnectionRefusedError:
        fix = "start the SuperLink there (pfsr deploy superlink), or correct the port: 9092"
        return Finding("missing", "connection", f"nothing listens at {place}", fix)
    except TimeoutError:
        fix = "open the port in the firewalls between, and check that the host is on"
        return Finding("missing", "connection", f"no answer from {place} in {SECONDS:g} s", fix)
    except OSError as error:
        fix = "check the network and the address"
        return Finding("missing", "connection", f"{place} is out of reach: {error.strerror}", fix)
    return Finding("ok", "connection", f"something listens at {place}")


def _language(host: str, port: int) -> tuple[Language, bytes]:
    """The language that the server speaks, and its certificate, which is not verified here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with _handshake(context, host, port) as connection:
            certificate = connection.getpeercert(binary_form=True) or b""
            grpc = connection.selected_alpn_protocol() == "h2"
            return ("gRPC over TLS" if grpc else "HTTP over TLS"), certificate
    except HANDSHAKE_ERRORS:
        return _language_in_clear(host, port), b""


def _language_in_clear(host: str, port: int) -> Language:
    if _first_bytes(host, port, PREFACE)[3:4] == bytes((SETTINGS_FRAME,)):
        return "gRPC in clear"
    request = b"HEAD / HTTP/1.1\r\nHost: superlink\r\nConnection: close\r\n\r\n"
    return "HTTP in clear" if _first_bytes(host, port, request).startswith(b"HTTP/") else "unknown"


def _first_bytes(host: str, port: int, words: bytes) -> bytes:
    """The first bytes that come back to ``words``, b"" for none."""
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=SECONDS) as connection,
    ):
        connection.sendall(words)
        while len(answer) < 5 and (more := connection.recv(64)):
            answer += more
    return answer


@contextlib.contextmanager
def _handshake(context: ssl.SSLContext, host: str, port: int) -> Iterator[ssl.SSLSocket]:
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, port), timeout=SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        yield connection


def _language_finding(server: Server, insecure: bool) -> Finding:
    """Whether the language is that of a SuperNode with these arguments."""
    wanted = "gRPC in clear" if insecure else "gRPC over TLS"
    if server.language == wanted:
        return Finding("ok", "language", server.language)
    if server.language.startswith("HTTP"):
        found = f"{server.language}, not gRPC: this looks like the control port"
        return Finding("missing", "language", found, "give the port for nodes: 9092")
    if server.language == "gRPC over TLS":
        fix = "leave --insecure out and give the federation's ca.crt"
        return Finding("missing", "language", "the server speaks TLS, --insecure does not", fix)
    if server.language == "gRPC in clear":
        fix = "start the SuperLink with its certificate (pfsr deploy superlink); for a test on one "
        fix += "machine: --insecure here"
        return Finding("missing", "language", "the server speaks in clear, TLS was asked for", fix)
    fix = "give the address and port of the SuperLink: 9092"
    return Finding("missing", "language", "neither TLS nor gRPC is spoken there", fix)


def _certificate_finding(server: Server, root_certificates: Path | None) -> Finding:
    """Whether a node trusts the server's certificate, under this name, today."""
    if root_certificates is not None and not root_certificates.is_file():
        fix = "copy ca.crt from the server's directory"
        return Finding("missing", "certificate", f"{root_certificates}: no such file", fix)
    try:
        context = ssl.create_default_context(cafile=root_certificates)
    except (ssl.SSLError, OSError):
        fix = "copy ca.crt from the server's directory again"
        return Finding("missing", "certificate", f"{root_certificates} holds no certificate", fix)
    try:
        with _handshake(context, server.host, server.port):
            names, until = _certificate_facts(server.certificate)
            return Finding("ok", "certificate", f"for {names}; valid until {until}")
    except ssl.SSLCertVerificationError as error:
        return _untrusted_finding(server, error, root_certificates)
    except HANDSHAKE_ERRORS as error:
        fix = "check that both sides have a common TLS version"
        return Finding("missing", "certificate", f"the TLS handshake failed: {error}", fix)


def _untrusted_finding(
    server: Server, error: ssl.SSLCertVerificationError, root_certificates: Path | None
) -> Finding:
    names, until = _certificate_facts(server.certificate)
    if error.verify_code in OTHER_NAME:
        found = f"the certificate is for another name: it has {names}, asked for was {server.host}"
        fix = "use one of these names, or on the server: pfsr deploy certificate DIR --host "
        return Finding("missing", "certificate", found, fix + server.host)
    if error.verify_code == EXPIRED:
        found = f"the server's certificate (until {until}) or its authority has expired"
        fix = "check this machine's clock, then on the server: pfsr deploy certificate DIR --host "
        return Finding("missing", "certificate", found, fix + server.host)
    if error.verify_code == NOT_YET_VALID:
        return Finding("missing", "certificate", "not valid yet", "check this machine's clock")
    by = f"the authority in {root_certificates}" if root_certificates else "one the system trusts"
    found = f"wrong CA: the server's certificate is not signed by {by} ({error.verify_message})"
    fix = "give the ca.crt of this federation, from the server's directory"
    return Finding("missing", "certificate", found, fix)


def _certificate_facts(certificate: bytes) -> tuple[str, str]:
    """The names in a certificate and its last day."""
    from cryptography import x509

    parsed = x509.load_der_x509_certificate(certificate)
    until = parsed.not_valid_after_utc.date().isoformat()
    try:
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return "no name at all", until
    hosts = [str(name.value) for name in found if isinstance(name, x509.DNSName | x509.IPAddress)]
    return ", ".join(hosts) or "no name at all", until
