# SPDX-License-Identifier: Apache-2.0
"""Clusters of fingerprints, with their number chosen, or none where none is seen.

Distances are those of :mod:`atlas_flwr.clustering.rows`. k is chosen by noise where
fingerprints come in parts (:mod:`atlas_flwr.clustering.tree`), else by silhouette
(:mod:`atlas_flwr.clustering.choice`); the method then finds k clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.clustering.balance import balanced_labels
from atlas_flwr.clustering.choice import (
    RESTARTS,
    centres,
    count_by_silhouette,
    mean_silhouette,
)
from atlas_flwr.clustering.least import joined
from atlas_flwr.clustering.methods import Method, method_named
from atlas_flwr.clustering.rows import Rows
from atlas_flwr.clustering.tree import count_beyond_noise
from atlas_flwr.errors import DataError

__all__ = ["Clusters", "cluster"]


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
    joins : int
        How many more clusters there were before small ones were joined to others.
    """

    labels: NDArray[np.int64]
    centroids: NDArray[np.float64]
    mean: NDArray[np.float64]
    k: int
    silhouette: float | None
    joins: int = 0

    def squared_distances(self, points: NDArray[np.generic]) -> NDArray[np.float64]:
        """Return squared distances to the centroids, shape (n, k).

        Parameters
        ----------
        points : NDArray
            Shape (n, dim), or (n, parts, dim): members or newcomers.
        """
        rows = Rows.of(points, self.mean).values
        squared: NDArray[np.float64] = ((rows[:, None] - self.centroids) ** 2).sum(2)
        return squared

    def nearest(self, point: NDArray[np.generic]) -> int:
        """Return the cluster whose centroid is nearest to a new point.

        The point has shape (dim,), or (parts, dim).
        """
        return int(self.squared_distances(np.asarray(point)[None])[0].argmin())


def cluster(
    points: NDArray[np.generic],
    k: int | None = None,
    *,
    method: str = "kmeans",
    max_k: int = 8,
    seed: int = 0,
    balanced: bool = False,
    least: int = 1,
) -> Clusters:
    """Cluster fingerprints, in whatever order they come.

    Parameters
    ----------
    points : NDArray
        Shape (n, dim); or (n, parts, dim), sketches of disjoint batches of each client,
        of any scale that a client's parts share.
    k : int, optional
        Number of clusters; ``None`` chooses from 1 to ``max_k``.
    method : str
        A key of :data:`atlas_flwr.clustering.METHODS`.
    max_k : int
        Largest to choose from; at most n - 1 are considered, and n with parts.
    seed : int
        Seed of the method and of the test.
    balanced : bool
        Make sizes differ by one at most, starting from what the method finds. The
        choice of k does not know of it.
    least : int
        Members that each cluster has; smaller ones are joined to the nearest, so that
        there may be fewer than k.

    Raises
    ------
    DataError
        If there is no point, a coordinate is not finite, k or ``least`` is not in 1..n,
        clusters are to be balanced and joined, or there is no such method.
    """
    chosen = method_named(method)
    points = np.asarray(points, np.float64)
    Rows.of(points)  # refuses what is no set of points
    n = len(points)
    if k is not None and not 1 <= k <= n:
        raise DataError(f"k={k} clusters of {n} points; allowed: 1 to n")
    if balanced and least > 1:
        raise DataError(f"balanced clusters, joined to {least}: allowed is one of both")
    # k-means starts from rows drawn by number: a fixed order of rows, that of their
    # values, gives the same clusters whoever answered first.
    order = np.lexsort(points.reshape(n, -1).T[::-1])
    rows = Rows.of(points[order])
    if k is None:
        k = _count(rows, max_k, chosen, seed)
    found = chosen(rows.values, k, seed, RESTARTS)
    centroids = centres(rows.values, found, k)
    if balanced:
        found = balanced_labels(rows.values, centroids)
        centroids = centres(rows.values, found, k)
    before = len(np.unique(found))
    if least > 1:
        found = joined(rows.values, found, least)
        k = int(found.max()) + 1
        centroids = centres(rows.values, found, k)
    silhouette = mean_silhouette(rows.values, found)
    labels, centroids = _renumbered(found[np.argsort(order)], centroids)
    joins = before - k if least > 1 else 0
    return Clusters(labels, centroids, rows.mean, k, silhouette, joins)


def _count(rows: Rows, max_k: int, method: Method, seed: int) -> int:
    n, parts, _ = rows.parts.shape
    if parts > 1:
        return count_beyond_noise(rows.parts, min(max_k, n), seed=seed)
    return count_by_silhouette(rows.values, min(max_k, n - 1), method, seed)


def _renumbered(
    labels: NDArray[np.int64], centroids: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number the clusters in order of first appearance, those without points last."""
    order = list(dict.fromkeys(labels.tolist()))
    order += [label for label in range(len(centroids)) if label not in order]
    return np.argsort(order)[labels], centroids[order]
