# SPDX-License-Identifier: Apache-2.0
"""What a device affords: memory model, ranks and cuts."""

from atlas_flwr._lazy import attach

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
