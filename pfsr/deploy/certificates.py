"""The certificates of a federation: an authority of its own, and the server certificate it signs.

Nodes trust this authority and nothing else. Its key is needed to sign, never to run.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LOOPBACK = "127.0.0.1"
AUTHORITY_DAYS = 3650
SERVER_DAYS = 397  # what clients of other kinds accept at most


class DeploymentError(ValueError):
    """A deployment step that cannot be done as asked; names the file and the fix."""


def make_authority(authority_directory: Path, valid_days: int = AUTHORITY_DAYS) -> None:
    """Writes the authority's ``ca.key`` (mode 0600) and ``ca.crt``.

    Args:
        authority_directory: Where they are written; made if need be.
        valid_days: Days that the certificate is valid.

    Raises:
        DeploymentError: When one of them exists: a new authority would cut off every node.
    """
    authority_directory.mkdir(parents=True, exist_ok=True)
    refuse_overwriting(authority_directory / "ca.key", authority_directory / "ca.crt")
    authority_key = ec.generate_private_key(ec.SECP384R1())
    authority_name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "PFSR federation authority")]
    )
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority_certificate = (
        _builder(authority_name, authority_name, authority_key.public_key(), valid_days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(key_identifier, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write_pair(
        authority_directory / "ca.key",
        authority_key,
        authority_directory / "ca.crt",
        authority_certificate,
    )


def make_server_certificate(
    authority_directory: Path, hosts: Sequence[str], valid_days: int = SERVER_DAYS
) -> None:
    """Writes ``server.key`` (mode 0600) and ``server.crt``, signed by the authority there.

    Replaces an older pair, which renews it.

    Args:
        authority_directory: Where the authority is.
        hosts: Names and IP addresses by which nodes reach the SuperLink. 127.0.0.1 is always added,
            since the SuperLink's own processes use its control port there.
        valid_days: Days that the certificate is valid.

    Raises:
        DeploymentError: For no host, and without an authority.
    """
    host_names = alternative_names(hosts)
    authority_key, authority_certificate = _authority(authority_directory)
    server_key = ec.generate_private_key(ec.SECP384R1())
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PFSR SuperLink")])
    key_identifier = x509.SubjectKeyIdentifier.from_public_key(server_key.public_key())
    issuer_identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(
        authority_key.public_key()
    )
    server_purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    server_certificate = (
        _builder(server_name, authority_certificate.subject, server_key.public_key(), valid_days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(server_purpose, critical=False)
        .add_extension(x509.SubjectAlternativeName(host_names), critical=False)
        .add_extension(key_identifier, critical=False)
        .add_extension(issuer_identifier, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write_pair(
        authority_directory / "server.key",
        server_key,
        authority_directory / "server.crt",
        server_certificate,
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid_days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # an hour back: the clocks of nodes differ
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=valid_days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """``hosts`` and loopback as a certificate has them. Raises DeploymentError."""
    if not hosts:
        raise DeploymentError("no host. Fix: name every address by which nodes reach the server.")
    return [_alternative_name(host) for host in dict.fromkeys([*hosts, LOOPBACK])]


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    host_pattern = r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*"
    if not re.fullmatch(host_pattern, host):
        raise DeploymentError(f"{host!r} is no host. Fix: a name or an IP address without a port.")
    return x509.DNSName(host)


def _authority(authority_directory: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        authority_key = serialization.load_pem_private_key(
            (authority_directory / "ca.key").read_bytes(), None
        )
        authority_certificate = x509.load_pem_x509_certificate(
            (authority_directory / "ca.crt").read_bytes()
        )
    except (OSError, ValueError) as error:
        fix = f"`pfsr deploy init {authority_directory} --host NAME`"
        raise DeploymentError(
            f"no authority in {authority_directory} ({error}). Fix: {fix}."
        ) from None
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey) or authority_key.public_key() != (
        authority_certificate.public_key()
    ):
        raise DeploymentError(
            f"{authority_directory}: ca.key is not the key of ca.crt. Fix: restore both."
        )
    return authority_key, authority_certificate


def _write_pair(
    key_path: Path,
    private_key: ec.EllipticCurvePrivateKey,
    certificate_path: Path,
    certificate: x509.Certificate,
) -> None:
    key_pem = private_key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _replace(key_path, key_pem, 0o600)
    _replace(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(file_path: Path, file_content: bytes, file_mode: int) -> None:
    """Writes a file atomically, and never readable by others in between."""
    partial_path = file_path.with_name(file_path.name + ".new")
    partial_path.unlink(missing_ok=True)
    descriptor = os.open(partial_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file_mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, no path
        file.write(file_content)
    partial_path.replace(file_path)


def refuse_overwriting(*file_paths: Path) -> None:
    """Raises DeploymentError when one of the files exists."""
    for file_path in file_paths:
        if file_path.exists():
            raise DeploymentError(
                f"{file_path} exists already. Fix: choose another place, or move it away. What was "
                f"made with it, registrations and certificates, ends with it."
            )
