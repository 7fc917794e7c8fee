# SPDX-License-Identifier: Apache-2.0
"""Keys of the run config: what eases the drawbacks of split and federated training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from atlas_flwr.config.knob import knob
from atlas_flwr.config.method import KIN

__all__ = ["RemedyConfig"]


@dataclass(frozen=True)
class RemedyConfig:
    """Options beside the method; all of them are off by default."""

    personal: Literal["none", "head", "tail", "both"] = knob(
        "none",
        "Sides of the cut whose adapters stay on their client, on its disk, and are "
        "neither sent nor aggregated. Try it where clients of one cluster differ.",
        only=KIN,
    )
    ema: float = knob(
        0.0,
        "Share of a cluster's former product that is kept in each aggregation, against "
        "forgetting; the same as a server learning rate of 1 minus it. It slows "
        "short runs down.",
        minimum=0,
        maximum=0.99,
        only=("atlas",),
    )
    align: float = knob(
        0.0,
        "Weight of the KL divergence that holds a client's answers near those of the "
        "model that its round began with. Costs one more forward pass a step.",
        minimum=0,
    )
    auxiliary_steps: int = knob(
        0,
        "Of so many plus one steps only the first goes over the cut; in the others the "
        "head follows an auxiliary tail's estimate of the trunk's gradient. Saves "
        "bytes and waiting.",
        minimum=0,
        only=KIN,
    )
    prune_data: float = knob(
        0.0,
        "Share of its training examples that a client drops after its first round: "
        "those with the smallest error (EL2N). Scoring costs a forward pass over all "
        "of them, once.",
        minimum=0,
        maximum=0.95,
    )
    skip_gradients: float = knob(
        0.0,
        "Do not send a gradient over the cut whose size is below this share of the "
        "running mean of those before it; 0 sends all. Saves both ways of a backward "
        "pass, and a step of head and trunk. Try 0.5 to 0.9, and watch the loss.",
        minimum=0,
        maximum=1,
        only=KIN,
    )
