# SPDX-License-Identifier: Apache-2.0
"""How a run's adapters are stepped, on clients and on the trunk."""

from __future__ import annotations

from dataclasses import replace

from atlas_flwr.config.schema import RunConfig
from atlas_flwr.types import OptimizerSpec

__all__ = ["optimizer_of", "trunk_optimizer_of"]


def optimizer_of(config: RunConfig) -> OptimizerSpec:
    """Return AdamW's settings on clients."""
    return OptimizerSpec(
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        accumulate=config.accumulate,
    )


def trunk_optimizer_of(config: RunConfig) -> OptimizerSpec:
    """Return AdamW's settings on the trunk."""
    rate = config.trunk_learning_rate or config.learning_rate
    return replace(optimizer_of(config), lr=rate)
