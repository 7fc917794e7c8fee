# SPDX-License-Identifier: Apache-2.0
"""The trunk: engine, sessions, and the transports that reach them."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.trunk.credentials import Credentials
    from atlas_flwr.trunk.engine.engine import TrunkEngine
    from atlas_flwr.trunk.engine.session import SessionSpec
    from atlas_flwr.trunk.engine.stats import TrunkStats
    from atlas_flwr.trunk.engine.table import Limits
    from atlas_flwr.trunk.host import Endpoint, TrunkHost
    from atlas_flwr.trunk.skipping import SkippingTrunk
    from atlas_flwr.trunk.source import TrunkSource
    from atlas_flwr.trunk.transports.addresses import connect
    from atlas_flwr.trunk.transports.framed import FramedTrunk
    from atlas_flwr.trunk.transports.grpc import ServeOptions, serve_grpc
    from atlas_flwr.trunk.transports.local import EngineTrunk, LocalTrunk, serve_local
    from atlas_flwr.trunk.transports.ray import start_ray_trunk
    from atlas_flwr.trunk.transports.requests import Request
    from atlas_flwr.trunk.transports.service import FrameService

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
        "EngineTrunk": "transports.local",
        "FrameService": "transports.service",
        "FramedTrunk": "transports.framed",
        "Limits": "engine.table",
        "LocalTrunk": "transports.local",
        "Request": "transports.requests",
        "ServeOptions": "transports.grpc",
        "SessionSpec": "engine.session",
        "SkippingTrunk": "skipping",
        "TrunkEngine": "engine.engine",
        "TrunkHost": "host",
        "TrunkSource": "source",
        "TrunkStats": "engine.stats",
        "connect": "transports.addresses",
        "serve_grpc": "transports.grpc",
        "serve_local": "transports.local",
        "start_ray_trunk": "transports.ray",
    },
)
