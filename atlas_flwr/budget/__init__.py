# SPDX-License-Identifier: Apache-2.0
"""What a device affords: memory model, importance, ranks and cuts."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.budget.allocation import AdaptedLayer, Allocation, allocate
    from atlas_flwr.budget.allocator import (
        give_back_freed_memory,
        packing_environment,
        return_freed_memory,
    )
    from atlas_flwr.budget.architecture import Architecture
    from atlas_flwr.budget.assignment import Assignment, assign
    from atlas_flwr.budget.band import Band, CutCost, Sender, SharedStep, share_band
    from atlas_flwr.budget.clock import Round, Traveller, TrunkRate, simulate
    from atlas_flwr.budget.footprint import Footprint
    from atlas_flwr.budget.importance import averaged, blended, distance, per_byte
    from atlas_flwr.budget.knapsack import Item
    from atlas_flwr.budget.memory import (
        MemoryEstimate,
        Repeated,
        TrunkSession,
        client_memory,
        trunk_memory,
    )
    from atlas_flwr.budget.pairing import (
        Guest,
        Host,
        Pairing,
        Prices,
        pair,
        ways_of,
    )
    from atlas_flwr.budget.queues import QUEUES
    from atlas_flwr.budget.seating import seated
    from atlas_flwr.budget.time import COMMON_FLOPS, Rates, StepTime, step_time

__all__ = [
    "COMMON_FLOPS",
    "QUEUES",
    "AdaptedLayer",
    "Allocation",
    "Architecture",
    "Assignment",
    "Band",
    "CutCost",
    "Footprint",
    "Guest",
    "Host",
    "Item",
    "MemoryEstimate",
    "Pairing",
    "Prices",
    "Rates",
    "Repeated",
    "Round",
    "Sender",
    "SharedStep",
    "StepTime",
    "Traveller",
    "TrunkRate",
    "TrunkSession",
    "allocate",
    "assign",
    "averaged",
    "blended",
    "client_memory",
    "distance",
    "give_back_freed_memory",
    "packing_environment",
    "pair",
    "per_byte",
    "return_freed_memory",
    "seated",
    "share_band",
    "simulate",
    "step_time",
    "trunk_memory",
    "ways_of",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "QUEUES": "queues",
        "AdaptedLayer": "allocation",
        "Allocation": "allocation",
        "Architecture": "architecture",
        "Assignment": "assignment",
        "Band": "band",
        "CutCost": "band",
        "Footprint": "footprint",
        "Guest": "pairing",
        "Host": "pairing",
        "Item": "knapsack",
        "MemoryEstimate": "memory",
        "Pairing": "pairing",
        "Prices": "pairing",
        "Rates": "time",
        "Repeated": "memory",
        "Round": "clock",
        "Sender": "band",
        "SharedStep": "band",
        "StepTime": "time",
        "Traveller": "clock",
        "TrunkRate": "clock",
        "TrunkSession": "memory",
        "allocate": "allocation",
        "assign": "assignment",
        "averaged": "importance",
        "blended": "importance",
        "client_memory": "memory",
        "distance": "importance",
        "give_back_freed_memory": "allocator",
        "pair": "pairing",
        "per_byte": "importance",
        "packing_environment": "allocator",
        "return_freed_memory": "allocator",
        "seated": "seating",
        "share_band": "band",
        "simulate": "clock",
        "step_time": "time",
        "COMMON_FLOPS": "time",
        "trunk_memory": "memory",
        "ways_of": "pairing",
    },
)
