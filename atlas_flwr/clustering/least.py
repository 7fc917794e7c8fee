# SPDX-License-Identifier: Apache-2.0
"""Clusters of so many members at least: smaller ones join the nearest.

In a cluster of two each member learns the other's update from their sum; what k members
are sent tells each of them the mean of k - 1 others at best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["joined"]


def joined(
    rows: NDArray[np.float64], labels: NDArray[np.int64], least: int
) -> NDArray[np.int64]:
    """Join clusters until each has enough members.

    The smallest goes first, to the one whose mean is nearest to its own, whatever found
    them: it is by this distance that newcomers are placed, too.

    Parameters
    ----------
    rows : NDArray
        Shape (n, dim), as :mod:`atlas_flwr.clustering.rows` makes them.
    labels : NDArray
        Shape (n,).
    least : int
        Members of a cluster, 1 to n.

    Returns
    -------
    NDArray
        Shape (n,), in 0..k-1; the same clusters where all were large enough.

    Raises
    ------
    DataError
        If there are fewer points than one cluster needs.
    """
    if not 1 <= least <= len(rows):
        raise DataError(
            f"clusters of {least} members at least, of {len(rows)} points; allowed: 1 "
            "to as many as there are"
        )
    labels = np.unique(labels, return_inverse=True)[1]
    while (sizes := np.bincount(labels)).min() < least:
        small = int(sizes.argmin())
        means = np.stack([rows[labels == label].mean(0) for label in range(len(sizes))])
        away = ((means - means[small]) ** 2).sum(1)
        away[small] = np.inf
        labels = np.where(labels == small, away.argmin(), labels)
        labels = np.unique(labels, return_inverse=True)[1]
    return np.asarray(labels, np.int64)
