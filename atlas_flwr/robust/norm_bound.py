# SPDX-License-Identifier: Apache-2.0
r"""Updates cut to a norm: at most a factor times the median of the cluster's norms.

.. math:: c_k = p_k \min(1, b / \lVert U_k \rVert), \quad
          b = \text{factor} \cdot \text{median}_j \lVert U_j \rVert

(norm bounding, arXiv 1911.07963, with a bound that the cluster itself sets). While at
most half of the clients are bad, each moves its cluster by at most p_k times factor
times the largest honest norm, whatever it sends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.robust.base import RobustRule, capped_shares, lower_median, norms

__all__ = ["NormBound"]


class NormBound(RobustRule):
    """Shortens what is far longer than the others' updates, and keeps its direction."""

    name = "norm-bound"

    def coefficients(
        self, gram: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return p_k min(1, b / norm of U_k)."""
        p, size = capped_shares(weights, self.bound), norms(gram)
        most = self.bound * lower_median(size[weights > 0])
        return np.asarray(
            p * np.where(size > most, most / np.maximum(size, 1e-300), 1.0)
        )
