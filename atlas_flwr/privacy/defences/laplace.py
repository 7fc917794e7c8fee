# SPDX-License-Identifier: Apache-2.0
"""Laplace noise on activations, and on gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.gaussian import Gaussian

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Laplace"]


@dataclass(frozen=True)
class Laplace(Gaussian):
    """As Gaussian noise, of the same standard deviation, with heavier tails."""

    name: ClassVar[str] = "laplace"

    def unlikeliness(
        self, received: Tensor, candidates: Tensor, scale: float
    ) -> Tensor:
        """Return sums of absolute distances in units of the noise's width."""
        off = (candidates - received).abs().sum(-1)
        return off * 2**0.5 / (self.strength * scale)

    def _drawn(self, like: Tensor, generator: torch.Generator) -> Tensor:
        from atlas_flwr.privacy.defences.system import uniform

        # By its inverse distribution function, at deviation 1.
        drawn = uniform(like.shape, generator) - 0.5
        inside = (1 - 2 * drawn.abs()).clamp(min=1e-12)
        return (-drawn.sign() * inside.log() / 2**0.5).to(like)
