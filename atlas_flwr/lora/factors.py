# SPDX-License-Identifier: Apache-2.0
"""A LoRA adapter of one linear layer, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from atlas_flwr.errors import AdapterError

__all__ = ["LoraFactors"]


@dataclass(frozen=True, eq=False)
class LoraFactors:
    """Delta W = scale * B @ A.

    Attributes
    ----------
    A : Tensor
        Shape (r, n): from the layer's n inputs.
    B : Tensor
        Shape (m, r): to the layer's m outputs.
    scale : float
        alpha / r in LoRA (arXiv 2106.09685), alpha / sqrt(r) in rsLoRA.

    Raises
    ------
    AdapterError
        If A and B are not matrices with the same rank of at least 1, or the scale is
        not finite.
    """

    A: Tensor
    B: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        a, b = tuple(self.A.shape), tuple(self.B.shape)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] == 0:
            raise AdapterError(
                f"LoRA factors A {a} and B {b}: A must be (r, n) and B (m, r) with the "
                "same r >= 1; were they swapped or transposed?"
            )
        if not math.isfinite(self.scale):
            raise AdapterError(f"LoRA scale {self.scale}; it must be a finite number")

    @property
    def rank(self) -> int:
        """The number r of directions."""
        return int(self.A.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """The layer's (m, n): outputs, inputs."""
        return int(self.B.shape[0]), int(self.A.shape[1])

    def delta(self) -> Tensor:
        """Form the (m, n) product; for tests and merging, never for aggregation."""
        return self.scale * (self.B @ self.A)

    def with_scale(self, scale: float) -> LoraFactors:
        """Return the same Delta W under another scale; B takes up the difference."""
        if scale == self.scale:
            return self
        if scale == 0:
            raise AdapterError("scale 0 cannot carry an adapter; give it a value > 0")
        return LoraFactors(self.A, self.B * (self.scale / scale), scale)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LoraFactors:
        """Move or convert both factors."""
        return LoraFactors(
            self.A.to(device=device, dtype=dtype),
            self.B.to(device=device, dtype=dtype),
            self.scale,
        )

    def check_finite(self, name: str) -> None:
        """Refuse NaN and infinity.

        Raises
        ------
        AdapterError
            Naming ``name``.
        """
        if not (torch.isfinite(self.A).all() and torch.isfinite(self.B).all()):
            raise AdapterError(f"adapter of {name!r} has NaN or infinity")
