# SPDX-License-Identifier: Apache-2.0
"""What the cut tells a server: attacks on a run's own wire, and defences of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.privacy.adversary import Adversary, Who
    from atlas_flwr.privacy.attacks.base import Attack
    from atlas_flwr.privacy.attacks.registry import ATTACKS
    from atlas_flwr.privacy.defences.base import Defence
    from atlas_flwr.privacy.defences.registry import DEFENCES, parse_defence
    from atlas_flwr.privacy.observation import Observation, Recording, Truth
    from atlas_flwr.privacy.scores import Score

__all__ = [
    "ATTACKS",
    "DEFENCES",
    "Adversary",
    "Attack",
    "Defence",
    "Observation",
    "Recording",
    "Score",
    "Truth",
    "Who",
    "parse_defence",
]

__getattr__, __dir__ = attach(
    __name__,
    {
        "ATTACKS": "attacks.registry",
        "Adversary": "adversary",
        "Attack": "attacks.base",
        "DEFENCES": "defences.registry",
        "Defence": "defences.base",
        "Observation": "observation",
        "Recording": "observation",
        "Score": "scores",
        "Truth": "observation",
        "Who": "adversary",
        "parse_defence": "defences.registry",
    },
)
