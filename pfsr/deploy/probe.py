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

CONNECT_SECONDS = 5.0  # for each connection and each answer
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
SETTINGS_FRAME = 4  # the first frame of an HTTP/2 server
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
    address: str,
    root_certificates: Path | None,
    private_key: Path | None,
    *,
    insecure: bool = False,
) -> list[Finding]:
    """What a SuperNode with these arguments would meet at the SuperLink.

    Args:
        address: HOST:PORT of the SuperLink's fleet API.
        root_certificates: The node's ca.crt; None for the system's authorities, as for Flower.
        private_key: The node's private key, None for none.
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
        findings.append(
            key_finding(server.address, root_certificates, private_key, insecure=insecure)
        )
    return findings


def _connection_finding(host: str, port: int) -> Finding:
    """Whether the name resolves, and anything listens there."""
    host_and_port = f"{host} port {port}"
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (socket.gaierror, UnicodeError):
        fix = "check the spelling and the name service, or give the IP address"
        return Finding("missing", "connection", f"the name {host} does not resolve", fix)
    except ConnectionRefusedError:
        fix = "start the SuperLink there (pfsr deploy superlink), or correct the port: 9092"
        return Finding("missing", "connection", f"nothing listens at {host_and_port}", fix)
    except TimeoutError:
        fix = "open the port in the firewalls between, and check that the host is on"
        return Finding(
            "missing", "connection", f"no answer from {host_and_port} in {CONNECT_SECONDS:g} s", fix
        )
    except OSError as error:
        fix = "check the network and the address"
        return Finding(
            "missing", "connection", f"{host_and_port} is out of reach: {error.strerror}", fix
        )
    return Finding("ok", "connection", f"something listens at {host_and_port}")


def _language(host: str, port: int) -> tuple[Language, bytes]:
    """The language that the server speaks, and its certificate, which is not verified here."""
    tls_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls_context.check_hostname = False
    tls_context.verify_mode = ssl.CERT_NONE
    try:
        with _handshake(tls_context, host, port) as tls_socket:
            der_certificate = tls_socket.getpeercert(binary_form=True) or b""
            speaks_grpc = tls_socket.selected_alpn_protocol() == "h2"
            return ("gRPC over TLS" if speaks_grpc else "HTTP over TLS"), der_certificate
    except HANDSHAKE_ERRORS:
        return _language_in_clear(host, port), b""


def _language_in_clear(host: str, port: int) -> Language:
    if _first_bytes(host, port, HTTP2_PREFACE)[3:4] == bytes((SETTINGS_FRAME,)):
        return "gRPC in clear"
    http_request = b"HEAD / HTTP/1.1\r\nHost: superlink\r\nConnection: close\r\n\r\n"
    speaks_http = _first_bytes(host, port, http_request).startswith(b"HTTP/")
    return "HTTP in clear" if speaks_http else "unknown"


def _first_bytes(host: str, port: int, request_bytes: bytes) -> bytes:
    """The first bytes that come back to ``request_bytes``, b"" for none."""
    first_bytes = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=CONNECT_SECONDS) as tcp_socket,
    ):
        tcp_socket.sendall(request_bytes)
        while len(first_bytes) < 5 and (next_bytes := tcp_socket.recv(64)):
            first_bytes += next_bytes
    return first_bytes


@contextlib.contextmanager
def _handshake(tls_context: ssl.SSLContext, host: str, port: int) -> Iterator[ssl.SSLSocket]:
    tls_context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, port), timeout=CONNECT_SECONDS) as plain_socket,
        tls_context.wrap_socket(plain_socket, server_hostname=host) as tls_socket,
    ):
        yield tls_socket


def _language_finding(server: Server, insecure: bool) -> Finding:
    """Whether the language is that of a SuperNode with these arguments."""
    expected_language = "gRPC in clear" if insecure else "gRPC over TLS"
    if server.language == expected_language:
        return Finding("ok", "language", server.language)
    if server.language.startswith("HTTP"):
        finding_text = f"{server.language}, not gRPC: this looks like the control port"
        return Finding("missing", "language", finding_text, "give the port for nodes: 9092")
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
        tls_context = ssl.create_default_context(cafile=root_certificates)
    except (ssl.SSLError, OSError):
        fix = "copy ca.crt from the server's directory again"
        return Finding("missing", "certificate", f"{root_certificates} holds no certificate", fix)
    try:
        with _handshake(tls_context, server.host, server.port):
            host_names, expiry_date = _certificate_facts(server.certificate)
            return Finding("ok", "certificate", f"for {host_names}; valid until {expiry_date}")
    except ssl.SSLCertVerificationError as error:
        return _untrusted_finding(server, error, root_certificates)
    except HANDSHAKE_ERRORS as error:
        fix = "check that both sides have a common TLS version"
        return Finding("missing", "certificate", f"the TLS handshake failed: {error}", fix)


def _untrusted_finding(
    server: Server, error: ssl.SSLCertVerificationError, root_certificates: Path | None
) -> Finding:
    host_names, expiry_date = _certificate_facts(server.certificate)
    if error.verify_code in OTHER_NAME:
        finding_text = (
            f"the certificate is for another name: it has {host_names}, asked for was {server.host}"
        )
        fix = "use one of these names, or on the server: pfsr deploy certificate DIR --host "
        return Finding("missing", "certificate", finding_text, fix + server.host)
    if error.verify_code == EXPIRED:
        finding_text = (
            f"the server's certificate (until {expiry_date}) or its authority has expired"
        )
        fix = "check this machine's clock, then on the server: pfsr deploy certificate DIR --host "
        return Finding("missing", "certificate", finding_text, fix + server.host)
    if error.verify_code == NOT_YET_VALID:
        return Finding("missing", "certificate", "not valid yet", "check this machine's clock")
    expected_issuer = (
        f"the authority in {root_certificates}" if root_certificates else "one the system trusts"
    )
    finding_text = f"wrong CA: the server's certificate is not signed by {expected_issuer} "
    finding_text += f"({error.verify_message})"
    fix = "give the ca.crt of this federation, from the server's directory"
    return Finding("missing", "certificate", finding_text, fix)


def _certificate_facts(der_certificate: bytes) -> tuple[str, str]:
    """The names in a certificate and its last day."""
    from cryptography import x509

    parsed_certificate = x509.load_der_x509_certificate(der_certificate)
    expiry_date = parsed_certificate.not_valid_after_utc.date().isoformat()
    try:
        alternative_names = parsed_certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return "no name at all", expiry_date
    host_names = [
        str(general_name.value)
        for general_name in alternative_names
        if isinstance(general_name, x509.DNSName | x509.IPAddress)
    ]
    return ", ".join(host_names) or "no name at all", expiry_date
