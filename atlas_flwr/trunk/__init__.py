# SPDX-License-Identifier: Apache-2.0
"""The trunk: engine, sessions, and the transports that reach them."""

from atlas_flwr._lazy import attach

__all__ = [
    "EngineTrunk",
    "FrameService",
    "FramedTrunk",
    "Limits",
    "LocalTrunk",
    "Request",
    "SessionSpec",
    "TrunkEngine",
    "TrunkHost",
    "TrunkSource",
    "TrunkStats",
    "connect",
    "serve_local",
    "start_ray_trunk",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "EngineTrunk": "local",
        "FrameService": "framed",
        "FramedTrunk": "framed",
        "Limits": "table",
        "LocalTrunk": "local",
        "Request": "framed",
        "SessionSpec": "session",
        "TrunkEngine": "engine",
        "TrunkHost": "host",
        "TrunkSource": "ray",
        "TrunkStats": "host",
        "connect": "transports",
        "serve_local": "local",
        "start_ray_trunk": "ray",
    },
)
