# SPDX-License-Identifier: Apache-2.0
"""Stability: whether other clients would have given the same clusters.

The mean adjusted Rand index, over pairs of random subsamples, of their clusterings on
the points that both have (Ben-Hur, Elisseeff and Guyon 2002, "A stability based method
for discovering structure in clustered data", with the adjusted index in place of their
similarity). Near 1, clusters stand on no single client; near 0 they are accidents.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from atlas_flwr.clustering.clusters import cluster
from atlas_flwr.errors import DataError

__all__ = ["subsample_agreement"]


def subsample_agreement(
    points: NDArray[np.generic],
    k: int,
    *,
    method: str = "kmeans",
    seed: int = 0,
    samples: int = 20,
    share: float = 0.8,
) -> float | None:
    """Cluster subsamples, and tell how well they agree.

    Parameters
    ----------
    points : NDArray
        See :func:`atlas_flwr.clustering.cluster`.
    k : int
        Number of clusters, the same for all subsamples.
    method : str
        How they are found.
    seed : int
        Draws the subsamples.
    samples : int
        How many; each is compared with the next.
    share : float
        Share of the points in each, in (0, 1).

    Returns
    -------
    float, optional
        At most 1; ``None`` for one cluster, which always agrees with itself, and where
        a subsample would not have k + 1 points.

    Raises
    ------
    DataError
        If there are fewer than 2 samples, or the share is not in (0, 1).
    """
    if samples < 2 or not 0 < share < 1:
        raise DataError(
            f"samples={samples}, share={share}; allowed: 2 or more, and between 0 and 1"
        )
    points = np.asarray(points)
    size = round(share * len(points))
    if k < 2 or size <= k:
        return None
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(len(points))[:size] for _ in range(samples)]
    found = [
        dict(
            zip(
                chosen.tolist(),
                cluster(points[chosen], k, method=method, seed=seed).labels.tolist(),
                strict=True,
            )
        )
        for chosen in drawn
    ]
    scores = []
    for one, other in pairwise(found):
        shared = sorted(one.keys() & other.keys())
        pair = [one[i] for i in shared], [other[i] for i in shared]
        scores.append(float(adjusted_rand_score(*pair)))
    return float(np.mean(scores))
