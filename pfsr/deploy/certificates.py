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


def make_authority(directory: Path, days: int = AUTHORITY_DAYS) -> None:
    """Writes ``ca.key`` (mode 0600) and ``ca.crt``, valid for ``days``, into ``directory``.

    Raises:
        DeploymentError: When one of them exists: a new authority would cut off every node.
    """
    directory.mkdir(parents=True, exist_ok=True)
    refuse_overwriting(directory / "ca.key", directory / "ca.crt")
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PFSR federation authority")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_pair(directory / "ca.key", key, directory / "ca.crt", certificate)


def make_server_certificate(directory: Path, hosts: Sequence[str], days: int = SERVER_DAYS) -> None:
    """Writes ``server.key`` (mode 0600) and ``server.crt``, signed by the authority there.

    Replaces an older pair, which renews it.

    Args:
        directory: Where the authority is.
        hosts: Names and IP addresses by which nodes reach the SuperLink. 127.0.0.1 is always added,
            since the SuperLink's own processes use its control port there.
        days: Days that the certificate is valid.

    Raises:
        DeploymentError: For no host, and without an authority.
    """
    names = alternative_names(hosts)
    authority_key, authority = _authority(directory)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PFSR SuperLink")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _builder(name, authority.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(purpose, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    _write_pair(directory / "server.key", key, directory / "server.crt", certificate)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
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
        .not_valid_after(now + datetime.timedelta(days=days))
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
    labels = r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*"
    if not re.fullmatch(labels, host):
        raise DeploymentError(f"{host!r} is no host. Fix: a name or an IP address without a port.")
    return x509.DNSName(host)


def _authority(directory: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        fix = f"`pfsr deploy init {directory} --host NAME`"
        raise DeploymentError(f"no authority in {directory} ({error}). Fix: {fix}.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != (
        certificate.public_key()
    ):
        raise DeploymentError(f"{directory}: ca.key is not the key of ca.crt. Fix: restore both.")
    return key, certificate


def _write_pair(
    key_path: Path, key: ec.EllipticCurvePrivateKey, path: Path, certificate: x509.Certificate
) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _replace(key_path, pem, 0o600)
    _replace(path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Writes a file atomically, and never readable by others in between."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, no path
        file.write(content)
    unfinished.replace(path)


def refuse_overwriting(*paths: Path) -> None:
    """Raises DeploymentError when one of the files exists."""
    for path in paths:
        if path.exists():
            raise DeploymentError(
                f"{path} exists already. Fix: choose another place, or move it away. What was made "
                f"with it, registrations and certificates, ends with it."
            )
