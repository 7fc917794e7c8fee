# SPDX-License-Identifier: Apache-2.0
"""The gRPC transport's far end: an engine that other machines call, over TLS.

The service knows bytes alone; what is in them is for
:mod:`atlas_flwr.trunk.transports.envelope`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import grpc

from atlas_flwr.errors import SessionError, TrunkBusy, TrunkError
from atlas_flwr.trunk.credentials import holder_of
from atlas_flwr.trunk.engine.engine import TrunkEngine
from atlas_flwr.trunk.transports.certificates import Identity
from atlas_flwr.trunk.transports.envelope import answered, sealed, sealed_answer
from atlas_flwr.trunk.transports.gate import Gate, shows_nothing
from atlas_flwr.trunk.transports.grpc_channel import (
    ALIVE,
    CLIENTS,
    OWNER,
    SIZES,
    is_loopback,
)
from atlas_flwr.trunk.transports.handing import Handing
from atlas_flwr.trunk.transports.ownership import OwnerService
from atlas_flwr.trunk.transports.rates import Rates, address_of
from atlas_flwr.trunk.transports.requests import Request
from atlas_flwr.trunk.transports.service import FrameService
from atlas_flwr.trunk.transports.watching import Watch

__all__ = ["ServeOptions", "serve_grpc"]

STRANGERS = 2  # threads in which calls without a token are refused


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
    client_ca : bytes, optional
        Authorities, PEM: who shows no certificate of theirs is refused before any call.
        A session that was opened for a certificate is stepped with that alone.
    insecure : bool
        Listen without TLS to other machines, too: text and adapters cross in the clear.
    calls : int
        Calls at once, most of them waiting; more are told to come again.
    rates : Rates
        Calls a second of each session, and wrong tokens of each address.
    largest : int
        Bytes of an envelope.
    grace : float
        Seconds that calls have to end in when the service stops.
    """

    listen: str = "127.0.0.1:0"
    advertise: str = ""
    identity: Identity | None = field(default=None, repr=False)
    client_ca: bytes | None = None
    insecure: bool = False
    calls: int = 64
    rates: Rates = field(default_factory=Rates)
    largest: int = 512 << 20
    grace: float = 5.0


@contextmanager
def serve_grpc(
    engine: TrunkEngine,
    options: ServeOptions,
    owner: OwnerService | None = None,
    watch: Watch | None = None,
) -> Iterator[str]:
    """Let clients on other machines find an engine.

    Parameters
    ----------
    engine : TrunkEngine
        The trunk.
    options : ServeOptions
        Where, and what it bears.
    owner : OwnerService, optional
        Answers its owner, where that is on another machine, too.
    watch : Watch, optional
        Looks at clients' calls as they pass.

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
    if not host or not port.isdecimal():
        raise TrunkError(f"listen={options.listen!r}; it is HOST:PORT, as 0.0.0.0:7001")
    if options.identity is None and not (options.insecure or is_loopback(host)):
        raise TrunkError(
            f"listen={options.listen!r} without TLS: what crosses is the clients' text "
            "in another spelling. Give a certificate, or listen on 127.0.0.1"
        )
    if options.client_ca is not None and options.identity is None:
        raise TrunkError("certificates of clients are for TLS: give the server's, too")
    server = grpc.server(
        ThreadPoolExecutor(options.calls, thread_name_prefix="trunk-call"),
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 0),
            *SIZES,
            *ALIVE,
        ],
        maximum_concurrent_rpcs=2 * options.calls,
    )
    strangers = ThreadPoolExecutor(STRANGERS, thread_name_prefix="trunk-stranger")
    gates = [_clients(engine, options, watch, strangers)]
    if owner is not None:
        gates.append(_owners(owner, options, strangers))
    server.add_generic_rpc_handlers(gates)
    bound = _bound(server, options)
    server.start()
    dialled = options.advertise or host
    if ":" not in dialled.rpartition("]")[2]:
        dialled = f"{dialled}:{bound}"
    try:
        yield f"grpc{'s' if options.identity else ''}://{dialled}"
    finally:
        server.stop(options.grace).wait()
        strangers.shutdown()


def _bound(server: Any, options: ServeOptions) -> int:
    try:
        if options.identity is None:
            return int(server.add_insecure_port(options.listen))
        pair = options.identity.key, options.identity.certificate
        credentials = grpc.ssl_server_credentials(
            [pair], options.client_ca, options.client_ca is not None
        )
        return int(server.add_secure_port(options.listen, credentials))
    except RuntimeError as error:
        raise TrunkError(f"cannot listen on {options.listen}: {error}") from None


@dataclass(frozen=True)
class _CheckedService(FrameService):
    """The trunk's end for one caller, whose tokens are looked at first."""

    _: KW_ONLY
    check: Callable[[str], None]

    def answer(self, request: Request) -> bytes:
        self.check(request.token)
        return super().answer(request)


def _clients(
    engine: TrunkEngine,
    options: ServeOptions,
    watch: Watch | None,
    strangers: ThreadPoolExecutor,
) -> Gate:
    """Return what answers clients, each by its address and what it has shown."""
    answer, rates = (watch.answered if watch else answered), options.rates
    handing = Handing(max(options.calls // 2, 1))

    def checked(envelope: bytes, context: Any) -> bytes:
        address, holder = address_of(context.peer()), None
        if options.client_ca is not None:
            (shown,) = context.auth_context()["x509_pem_cert"]
            holder = holder_of(shown)

        def check(token: str) -> None:
            let_in(token, address, holder)
            rates.called(token)

        return answer(_CheckedService(engine, handing, check=check), envelope)

    def let_in(token: str, address: str, holder: str | None = None) -> None:
        try:
            engine.check_open(token, holder)
        except SessionError:
            rates.shown(address, token, is_right=False)
            raise
        rates.shown(address, token, is_right=True)

    def is_open(token: str) -> bool:
        try:
            engine.check_open(token)
        except SessionError:
            return False
        return True

    def refused(token: str | None, context: Any) -> bytes:
        def refuse() -> bytes:
            if token is None:
                raise shows_nothing()
            let_in(token, address_of(context.peer()))
            raise TrunkBusy("this session was opened just now: call again")

        return watch.unread(token, refuse) if watch else sealed_answer(refuse)

    return Gate(CLIENTS, checked, is_open, refused, options.largest, strangers)


def _owners(
    owner: OwnerService, options: ServeOptions, strangers: ThreadPoolExecutor
) -> Gate:
    def checked(envelope: bytes, context: Any) -> bytes:
        address = address_of(context.peer())
        return owner.answer(envelope, partial(options.rates.shown, address))

    def refused(secret: str | None, context: Any) -> bytes:
        def refuse() -> bytes:
            raise shows_nothing()

        if secret is None:
            return sealed_answer(refuse)
        return checked(sealed({"secret": secret}, b""), context)

    return Gate(OWNER, checked, owner.knows, refused, options.largest, strangers)
