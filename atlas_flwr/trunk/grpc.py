# SPDX-License-Identifier: Apache-2.0
"""The gRPC transport: an engine that clients on other machines call, over TLS.

Calls are unary: a step has a number, so a call that was cut off may be made again. What
is larger than a message may be crosses in pieces. The service knows bytes alone; what
is in them is for :mod:`atlas_flwr.trunk.envelope`.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import torch

from atlas_flwr.errors import TrunkBusy, TrunkError, TrunkLost
from atlas_flwr.trunk.certificates import Identity
from atlas_flwr.trunk.engine import TrunkEngine
from atlas_flwr.trunk.envelope import answered, opened_answer, sealed_request
from atlas_flwr.trunk.framed import FramedTrunk, FrameService, Request
from atlas_flwr.wire.codecs import Codec

__all__ = ["GrpcTrunk", "ServeOptions", "connect_grpc", "serve_grpc"]

SERVICE = "atlas.Trunk"
CALL, PIECES = f"/{SERVICE}/Call", f"/{SERVICE}/Pieces"
PIECE = 1 << 20  # bytes
WHOLE = 32 << 20  # bytes of an envelope that crosses in one message, at most
AWAY = 20.0  # seconds without a trunk, after which it counts as lost
HELLO = 15.0  # seconds to find it at first

_ALIVE = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_SIZES = [
    ("grpc.max_send_message_length", WHOLE + PIECE),
    ("grpc.max_receive_message_length", WHOLE + PIECE),
]


@dataclass(frozen=True)
class ServeOptions:
    """Where an engine listens, and what it bears.

    Attributes
    ----------
    listen : str
        ``HOST:PORT``; port 0 takes a free one.
    advertise : str
        ``HOST`` or ``HOST:PORT`` that clients dial; empty is what is listened on.
    identity : Identity, optional
        With which TLS is spoken. Without, it listens on this machine alone.
    insecure : bool
        Listen without TLS to other machines, too: text and adapters cross in the clear.
    calls : int
        Calls at once, most of them waiting; more are told to come again.
    largest : int
        Bytes of an envelope.
    grace : float
        Seconds that calls have to end in when the service stops.
    """

    listen: str = "127.0.0.1:0"
    advertise: str = ""
    identity: Identity | None = field(default=None, repr=False)
    insecure: bool = False
    calls: int = 64
    largest: int = 512 << 20
    grace: float = 5.0


@contextmanager
def serve_grpc(engine: TrunkEngine, options: ServeOptions) -> Iterator[str]:
    """Let clients on other machines find an engine.

    Yields
    ------
    str
        The address for :func:`atlas_flwr.trunk.connect`.

    Raises
    ------
    TrunkError
        If it cannot listen there, or would listen to other machines without TLS.
    """
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit():
        raise TrunkError(f"listen={options.listen!r}; it is HOST:PORT, as 0.0.0.0:7001")
    if options.identity is None and not (options.insecure or _is_loopback(host)):
        raise TrunkError(
            f"listen={options.listen!r} without TLS: what crosses is the clients' text "
            "in another spelling. Give a certificate, or listen on 127.0.0.1"
        )
    server = grpc.server(
        ThreadPoolExecutor(options.calls, thread_name_prefix="trunk-call"),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 0),
            *_SIZES,
            *_ALIVE,
        ],
        maximum_concurrent_rpcs=2 * options.calls,
    )
    server.add_generic_rpc_handlers((_handlers(FrameService(engine), options.largest),))
    bound = _bound(server, options)
    server.start()
    dialled = options.advertise or host
    if ":" not in dialled.rpartition("]")[2]:
        dialled = f"{dialled}:{bound}"
    try:
        yield f"grpc{'s' if options.identity else ''}://{dialled}"
    finally:
        server.stop(options.grace).wait()


def _bound(server: Any, options: ServeOptions) -> int:
    try:
        if options.identity is None:
            return int(server.add_insecure_port(options.listen))
        pair = options.identity.key, options.identity.certificate
        credentials = grpc.ssl_server_credentials([pair])
        return int(server.add_secure_port(options.listen, credentials))
    except RuntimeError as error:
        raise TrunkError(f"cannot listen on {options.listen}: {error}") from None


def _handlers(service: FrameService, largest: int) -> Any:
    def call(envelope: bytes, context: Any) -> bytes:
        torch.set_num_threads(1)  # OpenMP keeps the number for each thread
        return answered(service, envelope)

    def pieces(parts: Iterable[bytes], context: Any) -> Iterator[bytes]:
        whole = bytearray()
        for part in parts:
            whole += part
            if len(whole) > largest:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"more than {largest >> 20} MiB in one call",
                )
        yield from _cut(call(bytes(whole), context))

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Call": grpc.unary_unary_rpc_method_handler(call),
            "Pieces": grpc.stream_stream_rpc_method_handler(pieces),
        },
    )


def _cut(envelope: bytes) -> Iterator[bytes]:
    for start in range(0, len(envelope), PIECE):
        yield envelope[start : start + PIECE]


@dataclass(kw_only=True)
class GrpcTrunk(FramedTrunk):
    """A client's session on a trunk of another process; see :func:`connect_grpc`.

    Parameters
    ----------
    address : str
        For messages.
    channel : Any
        gRPC's.
    """

    address: str
    channel: Any
    _away_since: float | None = field(default=None, init=False)

    def exchange(self, request: Request) -> bytes:
        """Call the trunk; one that does not answer is asked again for a while."""
        envelope = sealed_request(request)
        try:
            answer = self._sent(envelope)
        except grpc.RpcError as error:
            raise self._told(error) from None
        self._away_since = None
        return opened_answer(answer)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def _sent(self, envelope: bytes) -> bytes:
        if len(envelope) <= WHOLE:
            whole = self.channel.unary_unary(CALL)
            return bytes(whole(envelope, timeout=self.timeout))
        pieces = self.channel.stream_stream(PIECES)
        return b"".join(pieces(_cut(envelope), timeout=self.timeout))

    def _told(self, error: Any) -> TrunkError:
        code, why = error.code(), str(error.details())
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            if "larger than max" in why:
                return TrunkError(f"{self.address}: its answer is too large: {why}")
            return TrunkBusy(f"{self.address} has as many calls as it bears")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return TrunkError(
                f"{self.address} gave no answer in {self.timeout:.0f} s; it is "
                "overloaded (see trunk-threads), or its machine is"
            )
        if code is not grpc.StatusCode.UNAVAILABLE:
            return TrunkError(f"{self.address}: {code.name}: {why}")
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since < AWAY:
            return TrunkBusy(f"{self.address} does not answer right now: {why}")
        return TrunkLost(
            f"{self.address} has not answered for {AWAY:.0f} s ({why}); the steps of "
            "this round are lost with it"
        )


def connect_grpc(
    target: str, token: str, codec: Codec, ca: str | bytes | None, *, secure: bool
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
    secure : bool
        Whether TLS is spoken; without, this machine's own addresses alone are dialled.

    Raises
    ------
    TrunkError
        If another machine would be dialled without TLS, or the certificate is none.
    TrunkLost
        If nothing answers, or nothing with a certificate of that authority.
    """
    address = f"grpc{'s' if secure else ''}://{target}"
    options = [*_SIZES, *_ALIVE]
    if secure:
        credentials = grpc.ssl_channel_credentials(_pem(ca))
        channel = grpc.secure_channel(target, credentials, options)
    else:
        host = target.rpartition(":")[0]
        if ca is not None or not _is_loopback(host):
            raise TrunkError(
                f"{address}: grpc:// has no TLS and reaches this machine alone; dial "
                "grpcs:// with the authority's certificate (ca=)"
            )
        channel = grpc.insecure_channel(target, options)
    try:
        grpc.channel_ready_future(channel).result(timeout=HELLO)
    except grpc.FutureTimeoutError:
        channel.close()
        checked = ", or its certificate is not of the given authority" if secure else ""
        raise TrunkLost(
            f"nothing answers at {address} in {HELLO:.0f} s{checked}: does the trunk "
            "run, is the port open, do both clocks agree?"
        ) from None
    return GrpcTrunk(token=token, codec=codec, address=address, channel=channel)


def _pem(ca: str | bytes | None) -> bytes | None:
    if ca is None or isinstance(ca, bytes):
        return ca
    if "-----BEGIN" in ca:
        return ca.encode()
    path = Path(ca).expanduser()
    if not path.is_file():
        raise TrunkError(f"ca={ca!r} is neither a certificate in PEM nor a file")
    return path.read_bytes()


def _is_loopback(host: str) -> bool:
    name = host.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
