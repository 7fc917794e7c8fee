# SPDX-License-Identifier: Apache-2.0
"""Ways to cut points into k clusters, by name.

A new method is a function of :data:`Method`'s form and a line in :data:`METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import cut_tree, linkage
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans

from atlas_flwr.errors import DataError

__all__ = ["METHODS", "Method", "method_named"]

Rows = NDArray[np.float64]
Labels = NDArray[np.int64]
# (rows (n, dim), k in 1..n, seed, restarts) -> labels (n,), in 0..k-1
Method = Callable[[Rows, int, int, int], Labels]


def kmeans(rows: Rows, k: int, seed: int, restarts: int) -> Labels:
    """Minimise the squared distances to the clusters' means (Lloyd 1982)."""
    found = KMeans(k, n_init=restarts, random_state=seed % 2**32)  # pyright: ignore[reportArgumentType]
    return np.asarray(found.fit_predict(rows), np.int64)


def agglomerative(rows: Rows, k: int, seed: int, restarts: int) -> Labels:
    """Merge what it costs least to merge, until k clusters are left (Ward 1963).

    Nothing is drawn: the seed does not matter.
    """
    if len(rows) == 1:
        return np.zeros(1, np.int64)
    return np.asarray(cut_tree(linkage(rows, "ward"), k)[:, 0], np.int64)


def spectral(rows: Rows, k: int, seed: int, restarts: int) -> Labels:
    r"""Cut the graph of likenesses (Ng, Jordan and Weiss 2001, their algorithm).

    Likeness is :math:`\exp(-d^2 / 2 s^2)`, with s the median distance of two points.
    """
    squared = squareform(pdist(rows, "sqeuclidean"))
    scale = float(np.median(squared[np.triu_indices(len(rows), 1)])) if k > 1 else 1.0
    likeness = np.exp(-squared / (2 * max(scale, 1e-12)))
    np.fill_diagonal(likeness, 0.0)
    roots = np.sqrt(np.maximum(likeness.sum(1), 1e-12))
    vectors = np.linalg.eigh(likeness / np.outer(roots, roots))[1][:, -k:]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return kmeans(vectors / np.maximum(norms, 1e-12), k, seed, restarts)


METHODS: Mapping[str, Method] = {
    "agglomerative": agglomerative,
    "kmeans": kmeans,
    "spectral": spectral,
}


def method_named(name: str) -> Method:
    """Return a method.

    Raises
    ------
    DataError
        If there is none of that name.
    """
    if name not in METHODS:
        raise DataError(f"method={name!r}; allowed: {', '.join(METHODS)}")
    return METHODS[name]
