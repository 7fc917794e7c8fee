# SPDX-License-Identifier: Apache-2.0
"""The gRPC transport's near end: a session, or a whole trunk, on another machine.

Calls are unary: a step has a number, so a call that was cut off may be made again. What
is larger than a message may be crosses in pieces. A channel knows bytes alone; what is
in them is for :mod:`atlas_flwr.trunk.transports.envelope`.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from atlas_flwr.errors import TrunkBusy, TrunkError, TrunkLost
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.transports.envelope import opened_answer, sealed_request
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.trunk.transports.remote_host import RemoteHost
from atlas_flwr.trunk.transports.requests import Request
from atlas_flwr.wire.codecs import Codec

__all__ = ["GrpcChannel", "GrpcTrunk", "connect_grpc", "own_grpc"]

CLIENTS, OWNER = "atlas.Trunk", "atlas.TrunkOwner"  # services
TOKEN = "atlas-token-bin"  # what a call shows as it begins (see .gate)
PIECE = 1 << 20  # bytes
WHOLE = 32 << 20  # bytes of an envelope that crosses in one message, at most
AWAY = 20.0  # seconds without a trunk, after which it counts as lost
HELLO = 15.0  # seconds to find it at first
OWNED = 60.0  # likewise for its owner: it may be loading its blocks again

MAYBE_AWAY = {  # codes that may mean that nobody is there
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}

# gRPC tells a client that is refused for its certificate no reason; the trunk's stderr
# alone has it.
ASKS = {
    False: "asks for a certificate (atlas-flwr trunk --client-ca) and this client has "
    "none (trunk-cert and trunk-key of the node config; the owner's is in access.json)",
    True: "does not take the certificate that this client shows, which has ended, is "
    "not of its --client-ca, or not one of a client",
}
ALIVE = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
SIZES = [
    ("grpc.max_send_message_length", WHOLE + PIECE),
    ("grpc.max_receive_message_length", WHOLE + PIECE),
]


@dataclass
class GrpcChannel:
    """A way to one service of a trunk on another machine.

    Parameters
    ----------
    address : str
        For messages.
    channel : Any
        gRPC's.
    service : str
        The one that is called.
    secret : str
        The session's token, or the owner's secret, which each call shows first.
    """

    address: str
    channel: Any
    service: str
    secret: str = field(default="", repr=False)
    _away_since: float | None = field(default=None, init=False)
    _told_away: float = field(default=-math.inf, init=False)  # when, the last time
    _is_closed: bool = field(default=False, init=False)
    _in_pieces: bool = field(default=False, init=False)  # its answers are large

    def call(self, envelope: bytes, timeout: float) -> bytes:
        """Bring an envelope there; return the answer's.

        Raises
        ------
        TrunkBusy
            If it does not answer right now: for a while, and to be asked again.
        TrunkLost
            If it has not answered for longer.
        TrunkError
            If it cannot be answered, or the connection was closed.
        """
        if self._is_closed:
            raise TrunkError(f"the connection to {self.address} is closed")
        if time.monotonic() - self._told_away > AWAY:
            self._away_since = None  # nobody has asked meanwhile
        in_pieces = self._in_pieces or len(envelope) > WHOLE
        try:
            answer = self._sent(envelope, timeout, in_pieces)
        except grpc.RpcError as error:
            raise self._told(error, timeout, in_pieces) from None
        self._away_since = None
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._is_closed = True
        self.channel.close()

    def _sent(self, envelope: bytes, timeout: float, in_pieces: bool) -> bytes:
        shown: Any = {"timeout": timeout, "metadata": [(TOKEN, self.secret.encode())]}
        if not in_pieces:
            whole = self.channel.unary_unary(f"/{self.service}/Call")
            return bytes(whole(envelope, **shown))
        pieces = self.channel.stream_stream(f"/{self.service}/Pieces")
        return b"".join(pieces(cut(envelope), **shown))

    def _told(self, error: Any, timeout: float, in_pieces: bool) -> TrunkError:
        code, why = error.code(), str(error.details())
        if code not in MAYBE_AWAY:
            self._away_since = None  # it is there
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in why:
                return self._too_large(why, in_pieces)
            return TrunkBusy(f"{self.address} has as many calls as it bears")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return TrunkError(
                f"{self.address} gave no answer in {timeout:.0f} s; it is "
                "overloaded (see trunk-threads), or its machine is"
            )
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return TrunkError(
                f"{self.address} has no service {self.service}: it is another server, "
                "or a trunk that a ServerApp started for itself"
            )
        if code is not grpc.StatusCode.UNAVAILABLE:
            return TrunkError(f"{self.address}: {code.name}: {why}")
        self._told_away = now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since < AWAY:
            return TrunkBusy(f"{self.address} does not answer right now: {why}")
        return TrunkLost(
            f"{self.address} has not answered for {AWAY:.0f} s ({why}); the steps of "
            "this round are lost with it"
        )

    def _too_large(self, why: str, in_pieces: bool) -> TrunkError:
        """Let calls be made in pieces, whose answers come so: logits are large."""
        if in_pieces:
            return TrunkError(f"{self.address}: its answer is too large: {why}")
        self._in_pieces = True
        return TrunkBusy(f"{self.address}: its answer is to come in pieces; ask again")


@dataclass(kw_only=True)
class GrpcTrunk(FramedTrunk):
    """A client's session on a trunk of another process; see :func:`connect_grpc`.

    Parameters
    ----------
    channel : GrpcChannel
        To it.
    """

    channel: GrpcChannel

    @property
    def has_wire(self) -> bool:
        """Whether it is another machine's: without TLS that cannot be."""
        return self.channel.address.startswith("grpcs://")

    def exchange(self, request: Request) -> bytes:
        """Call the trunk; one that does not answer is asked again for a while."""
        wait = min(self.timeout, request.patience)
        return opened_answer(self.channel.call(sealed_request(request), wait))

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()


def connect_grpc(
    target: str,
    token: str,
    codec: Codec,
    ca: str | bytes | None,
    shown: Credentials | None = None,
    *,
    secure: bool,
) -> GrpcTrunk:
    """Connect to a session.

    Parameters
    ----------
    target : str
        ``HOST:PORT``.
    token : str
        The session's.
    codec : Codec
        How tensors cross.
    ca : str or bytes, optional
        The authority's certificate, PEM, or the path of a file with it; ``None`` for
        the system's authorities.
    shown : Credentials, optional
        For a trunk that asks for certificates.
    secure : bool
        Whether TLS is spoken; without, this machine's own addresses alone are dialled.

    Raises
    ------
    TrunkError
        If another machine would be dialled without TLS, or the certificate is none.
    TrunkLost
        If nothing answers, or nothing with a certificate of that authority.
    """
    channel = _dialled(target, ca, CLIENTS, token, shown, secure=secure)
    return GrpcTrunk(token=token, codec=codec, channel=channel)


@contextmanager
def own_grpc(
    address: str,
    secret: str,
    ca: str | None,
    timeout: float = 600.0,
    shown: Credentials | None = None,
) -> Iterator[RemoteHost]:
    """Own a trunk that was started on another machine; leave it in the end.

    Parameters
    ----------
    address : str
        ``grpcs://HOST:PORT``, or ``grpc://`` on this machine.
    secret : str
        The owner's.
    ca : str, optional
        See :func:`connect_grpc`.
    timeout : float
        Seconds for each answer.
    shown : Credentials, optional
        See :func:`connect_grpc`.

    Raises
    ------
    TrunkError
        If the address is none, or the secret another one's.
    TrunkLost
        If nothing answers.
    """
    scheme, _, target = address.partition("://")
    if scheme not in ("grpc", "grpcs") or not target:
        raise TrunkError(f"trunk address {address!r}; it is grpcs://HOST:PORT")
    secure = scheme == "grpcs"
    channel = _dialled(target, ca, OWNER, secret, shown, secure=secure, wait=OWNED)
    try:
        host = RemoteHost(lambda sent: channel.call(sent, timeout), secret, timeout)
        try:
            yield host
        finally:
            with suppress(TrunkError):  # a trunk that is gone has nothing to close
                host.leave()
    finally:
        channel.close()


def _dialled(
    target: str,
    ca: str | bytes | None,
    service: str,
    secret: str,
    shown: Credentials | None,
    *,
    secure: bool,
    wait: float | None = None,
) -> GrpcChannel:
    wait = HELLO if wait is None else wait
    address = f"grpc{'s' if secure else ''}://{target}"
    options = [*SIZES, *ALIVE]
    if secure:
        pair = (shown.key, shown.certificate) if shown else (None, None)
        credentials = grpc.ssl_channel_credentials(_pem(ca), *pair)
        channel = grpc.secure_channel(target, credentials, options)
    else:
        host = target.rpartition(":")[0]
        if ca is not None or shown is not None or not is_loopback(host):
            raise TrunkError(
                f"{address}: grpc:// has no TLS and reaches this machine alone; dial "
                "grpcs:// with the authority's certificate (ca=)"
            )
        channel = grpc.insecure_channel(target, options)
    try:
        grpc.channel_ready_future(channel).result(timeout=wait)
    except grpc.FutureTimeoutError:
        channel.close()
        checked = ", or its certificate is not of the given authority" if secure else ""
        if secure:
            checked += f", or it {ASKS[shown is not None]}"
        raise TrunkLost(
            f"nothing answers at {address} in {wait:.0f} s{checked}: does the trunk "
            "run, is the port open, do both clocks agree?"
        ) from None
    return GrpcChannel(address, channel, service, secret)


def _pem(ca: str | bytes | None) -> bytes | None:
    if ca is None or isinstance(ca, bytes):
        return ca
    if "-----BEGIN" in ca:
        return ca.encode()
    path = Path(ca).expanduser()
    if not path.is_file():
        raise TrunkError(f"ca={ca!r} is neither a certificate in PEM nor a file")
    return path.read_bytes()


def cut(envelope: bytes) -> Iterator[bytes]:
    """Cut what is too large for one message."""
    for start in range(0, len(envelope), PIECE):
        yield envelope[start : start + PIECE]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its own address."""
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
