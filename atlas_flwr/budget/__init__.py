# SPDX-License-Identifier: Apache-2.0
"""What a device affords: memory model, ranks and cuts."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.budget.assignment import Assignment, assign
    from atlas_flwr.budget.memory import Architecture, MemoryEstimate, client_memory

__all__ = ["Architecture", "Assignment", "MemoryEstimate", "assign", "client_memory"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "Architecture": "memory",
        "Assignment": "assignment",
        "MemoryEstimate": "memory",
        "assign": "assignment",
        "client_memory": "memory",
    },
)
