# SPDX-License-Identifier: Apache-2.0
"""Clusters of fingerprints: k-means, with its k chosen, or none where none is seen.

Every client's gradient has a large part in common with all others; the mean is
therefore subtracted and what is left scaled to unit norm before distances are taken.
k is the one of the best mean silhouette, provided that it beats those of 19 samples
without clusters that spread as the found clusters do inside (a Monte Carlo test at
level 0.05, in the manner of the gap statistic); otherwise there is one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from atlas_flwr.errors import DataError

__all__ = ["Clusters", "cluster"]

_RESTARTS = 20
_NULLS = 19


@dataclass(frozen=True, eq=False)
class Clusters:
    """A clustering, able to place newcomers.

    Attributes
    ----------
    labels : NDArray
        Shape (n,): each point's cluster, numbered in order of first appearance.
    centroids : NDArray
        Shape (k, dim), in the centred and scaled space.
    mean : NDArray
        Shape (dim,): what is subtracted from a point first.
    k : int
        Number of clusters.
    silhouette : float, optional
        Mean silhouette in [-1, 1]; ``None`` where k is 1 or every point is alone.
    """

    labels: NDArray[np.int64]
    centroids: NDArray[np.float64]
    mean: NDArray[np.float64]
    k: int
    silhouette: float | None

    def nearest(self, point: NDArray[np.floating]) -> int:
        """Return the cluster whose centroid is nearest to a new point."""
        row = _directions(np.asarray(point, np.float64)[None] - self.mean)
        return int(((self.centroids - row) ** 2).sum(1).argmin())


def cluster(
    points: NDArray[np.floating],
    k: int | None = None,
    *,
    max_k: int = 8,
    seed: int = 0,
) -> Clusters:
    """Cluster fingerprints, in whatever order they come.

    Parameters
    ----------
    points : NDArray
        Shape (n, dim).
    k : int, optional
        Number of clusters; ``None`` chooses from 1 to ``max_k``.
    max_k : int
        Largest to choose from; at most n - 1 are considered.
    seed : int
        Seed of k-means and of the test.

    Raises
    ------
    DataError
        If there is no point, a coordinate is not finite, or k is not in 1..n.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all():
        raise DataError(f"points of shape {points.shape}: (n, dim), n >= 1, all finite")
    if k is not None and not 1 <= k <= len(points):
        raise DataError(f"k={k} clusters of {len(points)} points; allowed: 1 to n")
    # k-means starts from rows drawn by number: a fixed order of rows, that of their
    # values, gives the same clusters whoever answered first.
    order = np.lexsort(points.T[::-1])
    mean = points[order].mean(0)
    rows = _directions(points[order] - mean)
    if k is None:
        k = _choose(rows, min(max_k, len(points) - 1), seed)
    found, centroids = _kmeans(rows, k, seed)
    silhouette = _silhouette(rows, found)
    labels, centroids = _renumbered(found[np.argsort(order)], centroids)
    return Clusters(labels, centroids, mean, k, silhouette)


def _choose(rows: NDArray[np.float64], max_k: int, seed: int) -> int:
    k, score, inside = _best(rows, max_k, seed)
    if k == 1:
        return 1
    rng = np.random.default_rng(seed)
    null = (
        _best(_structureless(inside, rng), max_k, seed, restarts=3)[1]
        for _ in range(_NULLS)
    )
    return k if score > max(null) else 1


def _best(
    rows: NDArray[np.float64], max_k: int, seed: int, restarts: int = _RESTARTS
) -> tuple[int, float, NDArray[np.float64]]:
    """Return the k of the best silhouette, which that is, and what it leaves over."""
    best, score, inside = 1, 0.0, rows
    distinct = len(np.unique(rows.round(9), axis=0))
    for k in range(2, min(max_k, distinct) + 1):
        labels, centroids = _kmeans(rows, k, seed, restarts)
        found = _silhouette(rows, labels)
        if found is not None and found > score:
            best, score, inside = k, found, rows - centroids[labels]
    return best, score, inside


def _structureless(
    inside: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw as many points with the principal variances that clusters have inside."""
    n = len(inside)
    _, spread, axes = np.linalg.svd(inside, full_matrices=False)
    drawn: NDArray[np.float64] = rng.standard_normal((n, len(spread))) * spread @ axes
    return drawn


def _kmeans(
    rows: NDArray[np.float64], k: int, seed: int, restarts: int = _RESTARTS
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    kmeans = KMeans(k, n_init=restarts, random_state=seed % 2**32)  # pyright: ignore[reportArgumentType]
    labels = np.asarray(kmeans.fit_predict(rows), np.int64)
    return labels, np.asarray(kmeans.cluster_centers_, np.float64)


def _renumbered(
    labels: NDArray[np.int64], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number the clusters in order of first appearance, those without points last."""
    order = list(dict.fromkeys(labels.tolist()))
    order += [label for label in range(len(centroids)) if label not in order]
    return np.argsort(order)[labels], centroids[order]


def _silhouette(rows: NDArray[np.float64], labels: NDArray[np.int64]) -> float | None:
    count = len(np.unique(labels))
    if not 2 <= count < len(rows):
        return None
    return float(silhouette_score(rows, labels))


def _directions(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    out: NDArray[np.float64] = np.zeros_like(rows)
    np.divide(rows, norms, out=out, where=norms > 1e-12)
    return out
