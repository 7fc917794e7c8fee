# SPDX-License-Identifier: Apache-2.0
"""The trunk: engine, sessions, and the transports that reach them."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.trunk.credentials import Credentials
    from atlas_flwr.trunk.engine import TrunkEngine
    from atlas_flwr.trunk.framed import FramedTrunk, FrameService, Request
    from atlas_flwr.trunk.grpc import ServeOptions, serve_grpc
    from atlas_flwr.trunk.host import Endpoint, TrunkHost, TrunkStats
    from atlas_flwr.trunk.local import EngineTrunk, LocalTrunk, serve_local
    from atlas_flwr.trunk.ray import start_ray_trunk
    from atlas_flwr.trunk.session import SessionSpec
    from atlas_flwr.trunk.skipping import SkippingTrunk
    from atlas_flwr.trunk.source import TrunkSource
    from atlas_flwr.trunk.table import Limits
    from atlas_flwr.trunk.transports import connect

__all__ = [
    "Credentials",
    "Endpoint",
    "EngineTrunk",
    "FrameService",
    "FramedTrunk",
    "Limits",
    "LocalTrunk",
    "Request",
    "ServeOptions",
    "SessionSpec",
    "SkippingTrunk",
    "TrunkEngine",
    "TrunkHost",
    "TrunkSource",
    "TrunkStats",
    "connect",
    "serve_grpc",
    "serve_local",
    "start_ray_trunk",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Credentials": "credentials",
        "Endpoint": "host",
        "EngineTrunk": "local",
        "FrameService": "framed",
        "FramedTrunk": "framed",
        "Limits": "table",
        "LocalTrunk": "local",
        "Request": "framed",
        "ServeOptions": "grpc",
        "SessionSpec": "session",
        "SkippingTrunk": "skipping",
        "TrunkEngine": "engine",
        "TrunkHost": "host",
        "TrunkSource": "source",
        "TrunkStats": "host",
        "connect": "transports",
        "serve_grpc": "grpc",
        "serve_local": "local",
        "start_ray_trunk": "ray",
    },
)
