# SPDX-License-Identifier: Apache-2.0
"""The trunk: engine, sessions, and the transports that reach them."""

from atlas_flwr._lazy import attach

__all__ = [
    "EngineTrunk",
    "Limits",
    "LocalTrunk",
    "SessionSpec",
    "TrunkEngine",
    "TrunkHost",
    "TrunkStats",
    "connect",
    "serve_local",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "EngineTrunk": "local",
        "Limits": "engine",
        "LocalTrunk": "local",
        "SessionSpec": "session",
        "TrunkEngine": "engine",
        "TrunkHost": "engine",
        "TrunkStats": "engine",
        "connect": "transports",
        "serve_local": "local",
    },
)
