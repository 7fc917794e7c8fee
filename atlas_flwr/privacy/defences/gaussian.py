# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise on activations, and on gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Gaussian"]


@dataclass(frozen=True)
class Gaussian(Defence):
    """Clips each position, and adds noise of ``strength`` times a usual one's size.

    No epsilon is stated: what is usual is taken from the client's own batch, and a text
    crosses once an epoch.
    """

    name: ClassVar[str] = "gaussian"

    @property
    def draws(self) -> bool:
        """Whether activations are changed at random."""
        return True

    @property
    def changes_wire(self) -> bool:
        """It does."""
        return True

    def activations(
        self, hidden: Tensor, generator: torch.Generator | None, scale: float = 0.0
    ) -> Tensor:
        """Clip, and add noise."""
        from atlas_flwr.privacy.defences.scale import clipped, usual_size

        scale = scale or usual_size(hidden)
        short = clipped(hidden, scale)
        if generator is None:
            return short
        return short + self.strength * scale * self._drawn(hidden, generator)

    def gradients(self, grad: Tensor, generator: torch.Generator) -> Tensor:
        """Clip, and add noise by the size of those that are not zero."""
        return self.activations(grad, generator)

    def unlikeliness(
        self, received: Tensor, candidates: Tensor, scale: float
    ) -> Tensor:
        """Return squared distances in units of twice the noise's variance."""
        off = (candidates - received).square().sum(-1)
        return off / (2 * (self.strength * scale) ** 2)

    def _drawn(self, like: Tensor, generator: torch.Generator) -> Tensor:
        from atlas_flwr.privacy.defences.system import normal

        return normal(like.shape, generator).to(like)
