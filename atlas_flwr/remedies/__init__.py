# SPDX-License-Identifier: Apache-2.0
"""Remedies against drawbacks of split and federated training: one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.remedies.base import (
        ClientHooks,
        Remedy,
        RoundContext,
        ServerHooks,
    )
    from atlas_flwr.remedies.registry import (
        REMEDIES,
        RemedyKeys,
        client_hooks,
        every_step_crosses,
        finish_remedies,
        kept_elsewhere,
        needing_classes,
        remedy_problems,
        remedy_warnings,
        remembered_steps,
        server_hooks,
        session_started,
    )

__all__ = [
    "REMEDIES",
    "ClientHooks",
    "Remedy",
    "RemedyKeys",
    "RoundContext",
    "ServerHooks",
    "client_hooks",
    "every_step_crosses",
    "finish_remedies",
    "kept_elsewhere",
    "needing_classes",
    "remedy_problems",
    "remedy_warnings",
    "remembered_steps",
    "server_hooks",
    "session_started",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ClientHooks": "base",
        "REMEDIES": "registry",
        "Remedy": "base",
        "RemedyKeys": "registry",
        "RoundContext": "base",
        "ServerHooks": "base",
        "client_hooks": "registry",
        "every_step_crosses": "registry",
        "finish_remedies": "registry",
        "kept_elsewhere": "registry",
        "needing_classes": "registry",
        "remedy_problems": "registry",
        "remedy_warnings": "registry",
        "remembered_steps": "registry",
        "server_hooks": "registry",
        "session_started": "registry",
    },
)
