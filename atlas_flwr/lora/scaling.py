# SPDX-License-Identifier: Apache-2.0
"""By what LoRA multiplies B A, at any rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atlas_flwr.errors import AdapterError

__all__ = ["Scaling"]


@dataclass(frozen=True)
class Scaling:
    """alpha / r (LoRA, arXiv 2106.09685) or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732).

    Attributes
    ----------
    alpha : float, optional
        ``None`` means 1 at every rank, which is right where all ranks are equal and
        factors are only passed on.
    use_rslora : bool
        Divide by the root of the rank.

    Raises
    ------
    AdapterError
        If alpha is not a finite number above 0.
    """

    alpha: float | None = None
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise AdapterError(f"LoRA alpha {self.alpha}; it must be a number above 0")

    def __call__(self, rank: int) -> float:
        """Return the scale at a rank."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.use_rslora else rank)
