# SPDX-License-Identifier: Apache-2.0
"""How many clusters, of points that come in one part: by silhouette, against chance.

k is the one of the best mean silhouette, provided that it beats those of 19 samples
without clusters that spread as the found clusters do inside (a Monte Carlo test at
level 0.05, in the manner of the gap statistic); otherwise there is one cluster. Where
fingerprints have parts, :mod:`atlas_flwr.clustering.tree` knows their noise, and finds
clusters that this misses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from atlas_flwr.clustering.methods import Method

__all__ = ["RESTARTS", "centres", "count_by_silhouette", "mean_silhouette"]

RESTARTS = 20
_NULLS = 19


def count_by_silhouette(
    rows: NDArray[np.float64], most: int, method: Method, seed: int
) -> int:
    """Choose k in 1..most for rows of shape (n, dim)."""
    k, score, inside = _best(rows, most, method, seed, RESTARTS)
    if k == 1:
        return 1
    rng = np.random.default_rng(seed)
    null = (
        _best(_structureless(inside, rng), most, method, seed, restarts=3)[1]
        for _ in range(_NULLS)
    )
    return k if score > max(null) else 1


def mean_silhouette(
    rows: NDArray[np.float64], labels: NDArray[np.int64]
) -> float | None:
    """Return the mean silhouette; ``None`` for one cluster, or one for each point."""
    count = len(np.unique(labels))
    if not 2 <= count < len(rows):
        return None
    return float(silhouette_score(rows, labels))


def centres(
    rows: NDArray[np.float64], labels: NDArray[np.int64], k: int
) -> NDArray[np.float64]:
    """Return the clusters' means, shape (k, dim).

    A cluster without points, of which there are some where fewer than k points are
    distinct, gets the place of the first point's.
    """
    found = np.tile(rows[labels == labels[0]].mean(0), (k, 1))
    for label in np.unique(labels):
        found[label] = rows[labels == label].mean(0)
    return found


def _best(
    rows: NDArray[np.float64], most: int, method: Method, seed: int, restarts: int
) -> tuple[int, float, NDArray[np.float64]]:
    """Return the k of the best silhouette, which that is, and what it leaves over."""
    best, score, inside = 1, 0.0, rows
    distinct = len(np.unique(rows.round(9), axis=0))
    for k in range(2, min(most, distinct) + 1):
        labels = method(rows, k, seed, restarts)
        found = mean_silhouette(rows, labels)
        if found is not None and found > score:
            best, score, inside = k, found, rows - centres(rows, labels, k)[labels]
    return best, score, inside


def _structureless(
    inside: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw as many points with the principal variances that clusters have inside."""
    n = len(inside)
    _, spread, axes = np.linalg.svd(inside, full_matrices=False)
    drawn: NDArray[np.float64] = rng.standard_normal((n, len(spread))) * spread @ axes
    return drawn
