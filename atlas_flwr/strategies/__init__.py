# SPDX-License-Identifier: Apache-2.0
"""Flower strategies: ATLAS and what it is compared with."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.strategies.atlas import Atlas
    from atlas_flwr.strategies.centralized import Centralized
    from atlas_flwr.strategies.local import Local
    from atlas_flwr.strategies.resumable import Resumable
    from atlas_flwr.strategies.roster import Roster

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
