# SPDX-License-Identifier: Apache-2.0
"""A look at a server over TLS: does it answer, whose is it, what time has it."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["Dialled", "dialled", "why_not"]

PATIENCE = 5.0  # seconds
# OpenSSL's numbers of what is wrong with a certificate.
NOT_YET, ENDED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64


@dataclass(frozen=True)
class Dialled:
    """What was met.

    Attributes
    ----------
    closed : str
        Why nothing answers; empty if something does.
    refused : ssl.SSLError, optional
        Why it is not trusted.
    plain : ssl.SSLError, optional
        Why nothing of TLS could be had at all.
    names : tuple[str, ...]
        That its certificate is for, if it is trusted.
    date : datetime, optional
        Its clock's.
    asked : float
        This machine's clock halfway between that question and its answer.
    """

    closed: str = ""
    refused: ssl.SSLError | None = None
    plain: ssl.SSLError | None = None
    names: tuple[str, ...] = ()
    date: datetime | None = None
    asked: float = 0.0


def dialled(
    address: str,
    trusted: ssl.SSLContext,
    clock: Callable[[], float],
    *,
    http: bool = True,
) -> Dialled:
    """Dial a server; a certificate that is not trusted does not end the looking.

    Parameters
    ----------
    address : str
        ``HOST:PORT``.
    trusted : ssl.SSLContext
        Has the authority by which its certificate is checked.
    clock : Callable[[], float]
        This machine's.
    http : bool
        Ask its time, too.
    """
    host, _, port = address.rpartition(":")
    place = host.strip("[]"), int(port)
    try:
        socket.create_connection(place, PATIENCE).close()
    except OSError as error:
        return Dialled(closed=f"{error}")
    try:
        return _looked(place, trusted, clock, http)
    except ssl.SSLCertVerificationError as error:
        refused: ssl.SSLError = error
    except (ssl.SSLEOFError, ConnectionError):
        # So does Docker's proxy of a published port that nothing listens behind.
        return Dialled(closed="connections are taken, and ended before any answer")
    except (ssl.SSLError, OSError) as error:
        found = error if isinstance(error, ssl.SSLError) else ssl.SSLError(str(error))
        return Dialled(refused=found, plain=found)
    # Its date tells whether this clock is why the certificate is not believed.
    lax = ssl.create_default_context()
    lax.check_hostname, lax.verify_mode = False, ssl.CERT_NONE
    try:
        return replace(_looked(place, lax, clock, http), refused=refused, names=())
    except (ssl.SSLError, OSError):
        return Dialled(refused=refused)


def _looked(
    place: tuple[str, int],
    context: ssl.SSLContext,
    clock: Callable[[], float],
    http_too: bool,
) -> Dialled:
    if not http_too:
        context.set_alpn_protocols(["h2"])
    connection = http.client.HTTPSConnection(*place, timeout=PATIENCE, context=context)
    try:
        connection.connect()
        shown: dict[str, Any] = dict(connection.sock.getpeercert() or {})
        names = tuple(str(name) for _, name in shown.get("subjectAltName", ()))
        if not http_too:
            return Dialled(names=names)
        before = clock()
        told = _date(connection)
        return Dialled(names=names, date=told, asked=(before + clock()) / 2)
    finally:
        connection.close()


def _date(connection: http.client.HTTPSConnection) -> datetime | None:
    try:
        connection.request("HEAD", "/")
        told = connection.getresponse().getheader("date")
    except http.client.HTTPException:
        return None
    try:
        return parsedate_to_datetime(told) if told else None
    except ValueError:
        return None


def why_not(error: ssl.SSLError, address: str) -> tuple[str, str]:
    """Say why a certificate is refused, and what to do."""
    said = getattr(error, "verify_message", "") or str(error)
    code = getattr(error, "verify_code", None)
    renewed = "a new certificate there (`provision --authority`)"
    if code is None:
        return (
            f"{address} speaks no TLS that is understood: {said}",
            "is it the SuperLink's port, and was that started with its certificate?",
        )
    if code == ENDED:
        remedy = f"{renewed}; if this machine's date is wrong, set it by NTP"
        return f"{address}: its certificate has ended ({said})", remedy
    if code == NOT_YET:
        remedy = "this clock or that of who made the folder is wrong: NTP on both"
        return f"{address}: its certificate has not begun ({said})", remedy
    if code in (OTHER_NAME, OTHER_ADDRESS):
        remedy = f"dial the name that link.host has in site.yaml, or {renewed}"
        return f"{address}: its certificate is for another name ({said})", remedy
    return (
        f"{address}: its certificate is of another authority than ca.crt ({said})",
        "this folder is of another site, or something between opens TLS: compare "
        "ca.crt with that in the link's folder",
    )
