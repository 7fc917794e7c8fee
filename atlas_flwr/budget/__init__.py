# SPDX-License-Identifier: Apache-2.0
"""What a device affords: memory model, ranks and cuts."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.budget.allocator import return_freed_memory
    from atlas_flwr.budget.architecture import Architecture
    from atlas_flwr.budget.assignment import Assignment, assign
    from atlas_flwr.budget.footprint import Footprint
    from atlas_flwr.budget.memory import (
        MemoryEstimate,
        TrunkSession,
        client_memory,
        trunk_memory,
    )

__all__ = [
    "Architecture",
    "Assignment",
    "Footprint",
    "MemoryEstimate",
    "TrunkSession",
    "assign",
    "client_memory",
    "return_freed_memory",
    "trunk_memory",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Architecture": "architecture",
        "Assignment": "assignment",
        "Footprint": "footprint",
        "MemoryEstimate": "memory",
        "TrunkSession": "memory",
        "assign": "assignment",
        "client_memory": "memory",
        "return_freed_memory": "allocator",
        "trunk_memory": "memory",
    },
)
