# SPDX-License-Identifier: Apache-2.0
"""Flower strategies: ATLAS and what it is compared with."""

from atlas_flwr._lazy import attach

__all__ = ["Atlas", "Centralized", "Local", "Resumable", "Roster"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Atlas": "atlas",
        "Centralized": "centralized",
        "Local": "local",
        "Resumable": "resumable",
        "Roster": "roster",
    },
)
