# SPDX-License-Identifier: Apache-2.0
"""Only the largest numbers of each position are sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from atlas_flwr.privacy.defences.base import Defence

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK(Defence):
    """Keeps the largest ``strength`` of each position's numbers; the rest is zero.

    Of activations and gradients alike. The codec sends the zeros, too.
    """

    name: ClassVar[str] = "topk"

    @property
    def changes_wire(self) -> bool:
        """It does."""
        return True

    def activations(
        self, hidden: Tensor, generator: torch.Generator | None, scale: float = 0.0
    ) -> Tensor:
        """Keep the largest."""
        count = max(1, round(self.strength * hidden.shape[-1]))
        kept = hidden.abs().topk(count, dim=-1).indices
        return hidden.new_zeros(hidden.shape).scatter(-1, kept, hidden.gather(-1, kept))

    def gradients(self, grad: Tensor, generator: torch.Generator) -> Tensor:
        """Keep the largest."""
        return self.activations(grad, None)
