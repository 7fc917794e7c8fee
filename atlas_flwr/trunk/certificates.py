# SPDX-License-Identifier: Apache-2.0
"""Certificates made for one run: its own authority, and the trunk's certificate.

The authority's key is thrown away once it has signed, so nobody can sign another one.
Clients get its certificate in a round's message, over Flower's authenticated channel.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Identity", "kept_identity", "run_identity"]

LIFE = timedelta(days=90)
SLACK = timedelta(hours=1)  # clocks that are behind
RENEWED = timedelta(days=30)  # before its end
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Identity:
    """What a server shows, and what its clients check it by; all PEM.

    Attributes
    ----------
    certificate : bytes
        The server's.
    key : bytes
        Its private key.
    ca : bytes
        The authority's certificate.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes


def run_identity(host: str) -> Identity:
    """Make an authority and a certificate for a host.

    Parameters
    ----------
    host : str
        The name or IP address by which clients reach it; this machine's own are added.
    """
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("atlas-flwr run")
    root = (
        _builder(issuer, issuer, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = dict.fromkeys((host, *LOOPBACK))
    certificate = (
        _builder(_name("atlas-flwr trunk"), issuer, server.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.SubjectAlternativeName([*map(_alternative, names)]), False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return Identity(certificate.public_bytes(pem), key, root.public_bytes(pem))


def kept_identity(folder: Path, host: str) -> Identity:
    """Take the identity that a folder keeps for a host; make one where it keeps none.

    So a trunk that is started anew is the one that its clients know. An identity that
    is another host's, or ends within 30 days, is replaced.

    Parameters
    ----------
    folder : Path
        Holds ``server.pem``, ``server.key`` and ``ca.pem``.
    host : str
        As in :func:`run_identity`.
    """
    files = [folder / name for name in ("server.pem", "server.key", "ca.pem")]
    if all(file.is_file() for file in files):
        found = Identity(*(file.read_bytes() for file in files))
        if _is_good(found.certificate, host):
            return found
    made = run_identity(host)
    for file, data in zip(files, (made.certificate, made.key, made.ca), strict=True):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as open_file:
            open_file.write(data)
    return made


def _is_good(certificate: bytes, host: str) -> bool:
    found = x509.load_pem_x509_certificate(certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lasts = found.not_valid_after_utc - datetime.now(UTC) > RENEWED
    return lasts and _alternative(host) in names


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + LIFE)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
