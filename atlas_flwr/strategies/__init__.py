# SPDX-License-Identifier: Apache-2.0
"""Flower strategies: ATLAS and what it is compared with."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.cohort.roster import Roster
    from atlas_flwr.grids.resumable import Resumable
    from atlas_flwr.strategies.atlas import Atlas
    from atlas_flwr.strategies.centralized import Centralized
    from atlas_flwr.strategies.flexlora import FlexLora
    from atlas_flwr.strategies.flora import Flora
    from atlas_flwr.strategies.hetlora import HetLora
    from atlas_flwr.strategies.hsplitlora import HSplitLora
    from atlas_flwr.strategies.local import Local
    from atlas_flwr.strategies.mira import Mira
    from atlas_flwr.strategies.oracle import OracleFedAvg
    from atlas_flwr.strategies.secure_atlas import SecureAtlas
    from atlas_flwr.strategies.splitlora import SplitLora

__all__ = [
    "Atlas",
    "Centralized",
    "FlexLora",
    "Flora",
    "HSplitLora",
    "HetLora",
    "Local",
    "Mira",
    "OracleFedAvg",
    "Resumable",
    "Roster",
    "SecureAtlas",
    "SplitLora",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Atlas": "atlas",
        "Centralized": "centralized",
        "FlexLora": "flexlora",
        "Flora": "flora",
        "HSplitLora": "hsplitlora",
        "HetLora": "hetlora",
        "Local": "local",
        "Mira": "mira",
        "OracleFedAvg": "oracle",
        "Resumable": "atlas_flwr.grids.resumable",
        "Roster": "atlas_flwr.cohort.roster",
        "SecureAtlas": "secure_atlas",
        "SplitLora": "splitlora",
    },
)
