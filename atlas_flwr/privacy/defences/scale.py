# SPDX-License-Identifier: Apache-2.0
"""How large a usual position is, and vectors cut to a multiple of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["clipped", "usual_size"]

# Models put single positions of some hundred times the usual norm at the beginning of
# texts, and lean on them: a bound at the usual norm would cost most of their accuracy.
LONGEST = 4.0


def usual_size(values: Tensor) -> float:
    """Return the median root mean square of the vectors (..., D), without zero ones."""
    sizes = values.float().square().mean(-1).sqrt().flatten()
    there = sizes[sizes > 0]
    return float(there.median()) if len(there) else 0.0


def clipped(values: Tensor, scale: float) -> Tensor:
    """Shorten vectors (..., D) to at most four times the usual size."""
    sizes = values.float().square().mean(-1, keepdim=True).sqrt()
    factor = (LONGEST * scale / sizes.clamp(min=1e-20)).clamp(max=1.0)
    return values * factor.to(values.dtype)
