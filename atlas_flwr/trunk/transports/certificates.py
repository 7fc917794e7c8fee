# SPDX-License-Identifier: Apache-2.0
"""Certificates for one run, or one site: an authority, and what servers show.

A run's authority throws its key away once it has signed: nobody can sign another one.
Clients get its certificate in a round's message, over Flower's authenticated channel.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.private_files import write_private

__all__ = ["Authority", "Identity", "kept_identity", "run_identity"]

PEM = serialization.Encoding.PEM
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


@dataclass(frozen=True)
class Authority:
    """What signs certificates of servers and clients; both PEM.

    Attributes
    ----------
    certificate : bytes
        What clients check by.
    key : bytes
        Who has it can make certificates that they trust.
    """

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def made(cls, name: str, life: timedelta = LIFE) -> Authority:
        """Make one."""
        key = ec.generate_private_key(ec.SECP256R1())
        root = (
            _builder(_name(name), _name(name), key.public_key(), life)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(_subject(key), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(root.public_bytes(PEM), _private(key))

    def check(self) -> None:
        """Check that certificate and key belong together.

        Raises
        ------
        ValueError
            If they do not, or are no PEM.
        """
        certificate = x509.load_pem_x509_certificate(self.certificate)
        if self._signing().public_key() != certificate.public_key():
            raise ValueError("its certificate is not of its key")

    @property
    def ends(self) -> datetime:
        """When what it signs is trusted no more."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc

    def _signing(self) -> ec.EllipticCurvePrivateKey:
        key = serialization.load_pem_private_key(self.key, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("its key is not of an elliptic curve")
        return key

    def identity(self, name: str, host: str, life: timedelta = LIFE) -> Identity:
        """Make a server's key, and a certificate for its host.

        Parameters
        ----------
        name : str
            The server's.
        host : str
            The name or IP address by which clients reach it; this machine's own are
            added.
        life : timedelta
            How long it is valid.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = map(_alternative, dict.fromkeys((host, *LOOPBACK)))
        made = self._for(name, key, ExtendedKeyUsageOID.SERVER_AUTH, life)
        made = made.add_extension(x509.SubjectAlternativeName([*hosts]), critical=False)
        shown = made.sign(self._signing(), hashes.SHA256()).public_bytes(PEM)
        return Identity(shown, _private(key), self.certificate)

    def credentials(self, name: str, life: timedelta = LIFE) -> Credentials:
        """Make a client's key and certificate, by which nobody can be a server."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._for(name, key, ExtendedKeyUsageOID.CLIENT_AUTH, life)
        shown = made.sign(self._signing(), hashes.SHA256()).public_bytes(PEM)
        return Credentials(shown, _private(key))

    def _for(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        purpose: x509.ObjectIdentifier,
        life: timedelta,
    ) -> x509.CertificateBuilder:
        issuer = x509.load_pem_x509_certificate(self.certificate)
        return (
            _builder(_name(name), issuer.subject, key.public_key(), life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(_subject(key), critical=False)
            .add_extension(_issuer(self._signing()), critical=False)
        )


def run_identity(host: str) -> Identity:
    """Make an authority and a certificate for a host, and forget the authority's key.

    Parameters
    ----------
    host : str
        As in :meth:`Authority.identity`.
    """
    return Authority.made("atlas-flwr run").identity("atlas-flwr trunk", host)


def kept_identity(folder: Path, host: str) -> Identity:
    """Take the identity that a folder keeps for a host; make one where it keeps none.

    So a trunk that is started anew is the one that its clients know. An identity that
    is another host's, or ends within 30 days, or is not whole, is replaced.

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
        if _is_good(found, host):
            return found
    made = run_identity(host)
    for file, data in zip(files, (made.certificate, made.key, made.ca), strict=True):
        write_private(file, data)
    return made


def _is_good(identity: Identity, host: str) -> bool:
    shown = Credentials(identity.certificate, identity.key)
    try:
        # Three files are three moments: a crash may have left some of another time.
        shown.check(datetime.now(UTC) + RENEWED, identity.ca)
        found = shown.own.extensions
        names = found.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return False
    return _alternative(host) in names


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    life: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SLACK)
        .not_valid_after(now + life)
    )


# OpenSSL's strict checks, which Python 3.13 turns on, want these two.
def _subject(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _issuer(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    plain = serialization.NoEncryption()
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain)


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
