# SPDX-License-Identifier: Apache-2.0
"""A mean without the updates that lie farthest from the geometric median.

As many are left out as may be bad. Where no more are bad, one that stays lies no
farther out than some honest one that was left out for it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.robust.base import RobustRule, capped_shares
from atlas_flwr.robust.geometric_median import distances, geometric_median

__all__ = ["Trimmed"]


class Trimmed(RobustRule):
    """Leaves out the updates that agree least with the others."""

    name = "trimmed"

    def coefficients(
        self, gram: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the shares of those that stay, and 0 for the others."""
        takes_part = np.flatnonzero(weights > 0)
        count = len(takes_part)
        out = min(math.ceil(self.bad_share * count - 1e-9), (count - 1) // 2)
        kept = weights.copy()
        if out:
            among = gram[np.ix_(takes_part, takes_part)]
            away = distances(among, geometric_median(among))
            kept[takes_part[np.argsort(away, kind="stable")[-out:]]] = 0.0
        return capped_shares(kept, self.bound)
