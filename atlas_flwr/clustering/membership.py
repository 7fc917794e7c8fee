# SPDX-License-Identifier: Apache-2.0
r"""Soft membership, for clients whose data mix tasks.

.. math:: u_{ij} = \frac{d_{ij}^{-2 / (m - 1)}}{\sum_l d_{il}^{-2 / (m - 1)}}

with d the distance of client i to centroid j, and the fuzziness m > 1 (Bezdek 1981,
"Pattern recognition with fuzzy objective function algorithms", theorem 11.1: what
minimises :math:`\sum_{ij} u_{ij}^m d_{ij}^2` for given centroids). As m nears 1 the
nearest centroid takes all; as it grows all clusters get the same. We take the centroids
as clustering found them, and do not move them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.clustering.clusters import Clusters
from atlas_flwr.errors import DataError

__all__ = ["memberships"]


def memberships(
    points: NDArray[np.floating], clusters: Clusters, *, fuzziness: float = 1.5
) -> NDArray[np.float64]:
    """Give each point a distribution over the clusters.

    Parameters
    ----------
    points : NDArray
        Shape (n, dim), or (n, parts, dim): members or newcomers.
    clusters : Clusters
        Where the centroids are.
    fuzziness : float
        m above. 2 is usual in a few dimensions; in 64, where distances differ less,
        1.5 gives a client of one task most of its weight there.

    Returns
    -------
    NDArray
        Shape (n, k): rows that sum to 1. A point on a centroid belongs to it alone.

    Raises
    ------
    DataError
        If the fuzziness is not above 1.
    """
    if not fuzziness > 1:
        raise DataError(f"fuzziness={fuzziness}; it must be above 1 (1.5 is usual)")
    squared = clusters.squared_distances(points)
    squared = np.maximum(
        squared, 1e-24
    )  # on a centroid: all but one are infinitely far
    logits = -np.log(squared / squared.min(1, keepdims=True)) / (fuzziness - 1)
    weights = np.exp(logits)
    shares: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return shares
