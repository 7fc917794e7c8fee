# SPDX-License-Identifier: Apache-2.0
"""What a client shows a trunk that asks for certificates (mutual TLS).

gRPC judges it in the handshake, and tells a client no reason. So files are looked at by
who names them, before anything starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from atlas_flwr.errors import ConfigError

__all__ = ["Credentials", "holder_of", "read_authorities"]


@dataclass(frozen=True)
class Credentials:
    """A client's certificate and key; both PEM.

    Attributes
    ----------
    certificate : bytes
        Its own, and what may be between that and the authority, in this order.
    key : bytes
        Its private key.
    """

    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(
        cls, certificate: str, key: str, names: tuple[str, str] = ("--cert", "--key")
    ) -> Credentials:
        """Read two files that belong together.

        Parameters
        ----------
        certificate, key : str
            Their paths.
        names : tuple[str, str]
            What gave them, for messages.

        Raises
        ------
        ConfigError
            If one of the two is missing, or they are of no use today.
        """
        for path, name, other in zip(
            (certificate, key), names, names[::-1], strict=True
        ):
            if not path:
                raise ConfigError([f"{other} is given without {name}: give both"])
        told = f"{names[0]}={certificate!r}, {names[1]}={key!r}"
        try:
            found = cls(
                *(Path(p).expanduser().read_bytes() for p in (certificate, key))
            )
            found.check(datetime.now(UTC))
        except OSError as error:
            why = f"{error.filename} cannot be read ({error.strerror})"
            raise ConfigError([f"{told}: {why}"]) from None
        except ValueError as error:
            raise ConfigError([f"{told}: {error}"]) from None
        return found

    @property
    def holder(self) -> str:
        """Whom the certificate is of (see :func:`holder_of`)."""
        return holder_of(self.certificate)

    @property
    def own(self) -> x509.Certificate:
        """The client's own certificate.

        Raises
        ------
        ValueError
            If there is none.
        """
        return _certificates(self.certificate)[0]

    def check_key(self) -> None:
        """Check that they belong together.

        Raises
        ------
        ValueError
            Saying what is wrong.
        """
        try:
            key = serialization.load_pem_private_key(self.key, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"the key cannot be used: {error}") from None
        if key.public_key() != self.own.public_key():
            raise ValueError("the certificate is not of this key")

    def check(self, now: datetime, authorities: bytes | None = None) -> None:
        """Check that they belong together, and are valid.

        Parameters
        ----------
        now : datetime
            At this time.
        authorities : bytes, optional
            The certificates, PEM, of which theirs must be.

        Raises
        ------
        ValueError
            Saying what is wrong.
        """
        chain = _certificates(self.certificate)
        self.check_key()
        if now < chain[0].not_valid_before_utc:
            begins = f"{chain[0].not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            raise ValueError(
                f"the certificate begins at {begins}: is this clock right?"
            )
        if now > chain[0].not_valid_after_utc:
            ended = f"{chain[0].not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            raise ValueError(f"the certificate ended at {ended}: have a new one made")
        if authorities is not None and not _is_of(chain, _certificates(authorities)):
            raise ValueError("the certificate is of another authority")


@lru_cache(maxsize=1024)
def holder_of(certificate: bytes) -> str:
    """Say whom a certificate is of: its subject, and its other names if it has some.

    A new one of the same names is the same holder's.

    Parameters
    ----------
    certificate : bytes
        PEM; the first of several.

    Raises
    ------
    ValueError
        If there is none.
    """
    own = _certificates(certificate)[0]
    names = [own.subject.rfc4514_string()]
    for each in own.extensions:
        if isinstance(each.value, x509.SubjectAlternativeName):
            names += sorted(str(name.value) for name in each.value)
    return "; ".join(names)


def read_authorities(path: Path, name: str = "--client-ca ") -> bytes:
    """Read the certificates of authorities.

    Parameters
    ----------
    path : Path
        Of the file.
    name : str
        What gave it, for messages.

    Raises
    ------
    ConfigError
        If the file has none.
    """
    try:
        found = path.expanduser().read_bytes()
        _certificates(found)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError([f"{name}{path}: {why}"]) from None
    return found


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ValueError(f"there is no certificate in PEM ({error})") from None


def _is_of(chain: list[x509.Certificate], roots: list[x509.Certificate]) -> bool:
    return any(_issued(root, each) for each in chain for root in roots)


def _issued(root: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
