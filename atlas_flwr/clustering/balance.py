# SPDX-License-Identifier: Apache-2.0
"""Balanced clusters: sizes that differ by one at most.

k-means whose assignment step is an assignment problem: each centroid offers as many
slots as a cluster has members, and the points take slots at the least sum of squared
distances (Malinen and Fränti 2014, "Balanced k-means for clustering", section 3). The
sum never rises from one step to the next, so that the iteration ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["balanced_labels"]

_STEPS = 100


def balanced_labels(
    rows: NDArray[np.float64], centroids: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Assign points to clusters of (nearly) equal sizes.

    Parameters
    ----------
    rows : NDArray
        Shape (n, dim).
    centroids : NDArray
        Shape (k, dim), k <= n: where to begin; moved to the members' means in turn.

    Returns
    -------
    NDArray
        Shape (n,): labels in 0..k-1, each n // k or n // k + 1 times.
    """
    labels = _assigned(rows, centroids)
    for _ in range(_STEPS):
        means = [rows[labels == label].mean(0) for label in range(len(centroids))]
        moved = _assigned(rows, np.stack(means))
        if np.array_equal(moved, labels):
            break
        labels = moved
    return labels


def _assigned(
    rows: NDArray[np.float64], centroids: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Solve one assignment step exactly.

    Every cluster has n // k slots that must be filled and, where k does not divide n,
    one that may stay empty: dummy points take the empty ones, and no others.
    """
    n, k = len(rows), len(centroids)
    least, over = divmod(n, k)
    squared = ((rows[:, None] - centroids) ** 2).sum(2)
    if not over:
        chosen = linear_sum_assignment(np.tile(squared, least))[1]
        return np.asarray(chosen % k, np.int64)
    cost = np.tile(squared, least + 1)
    dummies = np.zeros((k - over, k * (least + 1)))
    dummies[:, : k * least] = 1 + n * squared.max()
    chosen = linear_sum_assignment(np.vstack([cost, dummies]))[1]
    return np.asarray(chosen[:n] % k, np.int64)
