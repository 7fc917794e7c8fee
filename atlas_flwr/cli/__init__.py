# SPDX-License-Identifier: Apache-2.0
"""The command ``atlas-flwr``: what Flower's own command line has no verb for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.cli.command import main

__all__ = ["main"]

__getattr__, __dir__ = attach(__name__, {"main": "command"})
