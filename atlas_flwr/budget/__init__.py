# SPDX-License-Identifier: Apache-2.0
"""What a device affords: memory model, importance, ranks and cuts."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.budget.allocation import AdaptedLayer, Allocation, allocate
    from atlas_flwr.budget.assignment import Assignment, assign
    from atlas_flwr.budget.importance import averaged, blended, distance, per_byte
    from atlas_flwr.budget.knapsack import Item
    from atlas_flwr.budget.memory import Architecture, MemoryEstimate, client_memory
    from atlas_flwr.budget.time import Rates, StepTime, step_time

__all__ = [
    "AdaptedLayer",
    "Allocation",
    "Architecture",
    "Assignment",
    "Item",
    "MemoryEstimate",
    "Rates",
    "StepTime",
    "allocate",
    "assign",
    "averaged",
    "blended",
    "client_memory",
    "distance",
    "per_byte",
    "step_time",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "AdaptedLayer": "allocation",
        "Allocation": "allocation",
        "Architecture": "memory",
        "Assignment": "assignment",
        "Item": "knapsack",
        "MemoryEstimate": "memory",
        "Rates": "time",
        "StepTime": "time",
        "allocate": "allocation",
        "assign": "assignment",
        "averaged": "importance",
        "blended": "importance",
        "client_memory": "memory",
        "distance": "importance",
        "per_byte": "importance",
        "step_time": "time",
    },
)
