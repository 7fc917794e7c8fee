# SPDX-License-Identifier: Apache-2.0
"""Addresses of trunks: which transport a client takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from atlas_flwr.errors import TrunkError
from atlas_flwr.trunk.credentials import Credentials
from atlas_flwr.trunk.transports.framed import FramedTrunk
from atlas_flwr.trunk.transports.link import codec_for
from atlas_flwr.types import AUTO_CODEC
from atlas_flwr.wire.codecs import Codec, codec_named

__all__ = ["TRANSPORTS", "connect"]

Authority = str | bytes | None
Shown = Credentials | None
Opener = Callable[[str, str, Codec, Authority, Shown], FramedTrunk]


def _ray(
    name: str, token: str, codec: Codec, ca: Authority, shown: Shown
) -> FramedTrunk:
    from atlas_flwr.trunk.transports.ray import connect_ray

    _refuse_certificate("ray", name, ca, shown)
    return connect_ray(name, token, codec)


def _local(
    name: str, token: str, codec: Codec, ca: Authority, shown: Shown
) -> FramedTrunk:
    from atlas_flwr.trunk.transports.local import connect_local

    _refuse_certificate("local", name, ca, shown)
    return connect_local(name, token, codec)


def _grpc(
    name: str, token: str, codec: Codec, ca: Authority, shown: Shown
) -> FramedTrunk:
    from atlas_flwr.trunk.transports.grpc_channel import connect_grpc

    return connect_grpc(name, token, codec, ca, shown, secure=False)


def _grpcs(
    name: str, token: str, codec: Codec, ca: Authority, shown: Shown
) -> FramedTrunk:
    from atlas_flwr.trunk.transports.grpc_channel import connect_grpc

    return connect_grpc(name, token, codec, ca, shown, secure=True)


TRANSPORTS: Mapping[str, Opener] = {
    "grpc": _grpc,
    "grpcs": _grpcs,
    "local": _local,
    "ray": _ray,
}


def connect(
    address: str,
    token: str | None = None,
    ca: str | bytes | None = None,
    codec: str = "raw",
    *,
    spares_padding: bool = False,
    shown: Credentials | None = None,
) -> FramedTrunk:
    """Connect to a session on a trunk.

    Parameters
    ----------
    address : str
        ``grpcs://<host>:<port>`` for a trunk on another machine, ``grpc://`` for one
        on this machine without TLS; ``ray://<name>`` for an actor of this Ray cluster;
        ``local://<name>`` for an engine in this process.
    token : str, optional
        The session's token, which the server sends with a round; required.
    ca : str or bytes, optional
        Certificate of the server's authority in PEM, or the path of a file with it, for
        ``grpcs://``; ``None`` takes the system's authorities.
    codec : str
        A key of :data:`atlas_flwr.wire.CODECS`, or ``auto``: the link is measured, if
        there is one, and a codec chosen (see :mod:`atlas_flwr.trunk.transports.link`).
    spares_padding : bool
        See :class:`~atlas_flwr.trunk.transports.framed.FramedTrunk`. Losses of this
        package, which are at labels alone, may have it; Hugging Face's on a left-padded
        batch, whose first tokens are predicted from padding, may not.
    shown : Credentials, optional
        Certificate and key, for a trunk that asks its clients for them.

    Raises
    ------
    TrunkError
        If the address has no known scheme, the token is missing, or a certificate was
        given to a transport without TLS.
    TrunkLost
        If nothing answers there.
    WireError
        If there is no such codec.
    """
    scheme, separator, name = address.partition("://")
    if not separator or scheme not in TRANSPORTS:
        allowed = ", ".join(f"{s}://" for s in sorted(TRANSPORTS))
        raise TrunkError(f"trunk address {address!r}; allowed schemes: {allowed}")
    if not token:
        raise TrunkError(f"{address} needs the token of a session, and none was given")
    known = codec_named("raw" if codec == AUTO_CODEC else codec)
    trunk = TRANSPORTS[scheme](name, token, known, ca, shown)
    if codec == AUTO_CODEC:
        trunk.codec = codec_for(trunk)
    trunk.spares_padding = spares_padding
    return trunk


def _refuse_certificate(scheme: str, name: str, ca: Authority, shown: Shown) -> None:
    if ca is not None or shown is not None:
        raise TrunkError(
            f"{scheme}://{name} takes no certificate (ca=, shown=): {scheme}:// does "
            "not leave this machine's cluster and has no TLS; leave it out"
        )
