# SPDX-License-Identifier: Apache-2.0
r"""A graph of tasks, and the mixing matrix that one step on it is.

MIRA (IEEE Networking Letters 7(3), 2025, eq. 3-7) adds to the clients' losses
:math:`\frac{\lambda}{2} \sum_{kl} a_{kl} \lVert W_k - W_l \rVert^2`, whose server step

.. math:: W_k \leftarrow W_k - \eta \lambda \sum_l a_{kl} (W_k - W_l)
          = \sum_l C_{kl} W_l, \quad C = I - \eta \lambda L

is a weighted sum with the graph's Laplacian L. (The first sum is over ordered pairs, so
that its gradient is twice the second; :math:`\eta` takes that up.) Written as C it
applies to products of any rank, where the paper needs factors of one; C = I is local
training, and C with equal rows is averaging.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["adjacency", "adjacency_of", "mixing_matrix"]

Matrix = NDArray[np.float64]


def adjacency(points: NDArray[np.floating], width: float | None = None) -> Matrix:
    r"""Return :math:`a_{kl} = \exp(-\lVert f_k - f_l \rVert^2 / w)`, 0 on the diagonal.

    Parameters
    ----------
    points : NDArray
        Shape (n, dim): a fingerprint each.
    width : float, optional
        w, the squared distance at which similarity falls to 1/e. ``None`` takes the
        median squared distance of those that differ, so that the graph adapts to how
        far apart tasks are.

    Raises
    ------
    DataError
        If there is no point, one is not finite, or the width is not above 0.
    """
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or not len(points) or not np.isfinite(points).all():
        raise DataError(f"points of shape {points.shape}: (n, dim), n >= 1, all finite")
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    apart = squares[np.triu_indices(len(points), 1)]
    if width is None:
        width = float(np.median(apart[apart > 0])) if apart.any() else 1.0
    if not width > 0:
        raise DataError(f"width {width}; it must be above 0")
    found: Matrix = np.exp(-squares / width)
    np.fill_diagonal(found, 0.0)
    return found


def adjacency_of(matrix: NDArray[np.floating]) -> Matrix:
    """Check an adjacency that is given.

    Raises
    ------
    DataError
        If it is not square, symmetric, finite and at least 0.
    """
    found = np.asarray(matrix, np.float64).copy()
    is_square = found.ndim == 2 and found.shape[0] == found.shape[1]
    if not is_square or not np.isfinite(found).all() or (found < 0).any():
        raise DataError(
            f"an adjacency of shape {found.shape}; it must be square, and its numbers "
            "finite and at least 0"
        )
    if not np.allclose(found, found.T):
        raise DataError("the adjacency is not symmetric: give a_kl = a_lk")
    np.fill_diagonal(found, 0.0)
    return found


def mixing_matrix(adjacency: NDArray[np.floating], strength: float) -> Matrix:
    r"""Return C = I - s L / d, L the graph's Laplacian and d its largest degree.

    In MIRA's letters :math:`\eta \lambda = s / d`: scaled so, every row of C is a
    convex combination at any strength from 0 to 1, however many and however similar
    the tasks are (the condition is :math:`0 \le \eta \lambda d \le 1`).

    Parameters
    ----------
    adjacency : NDArray
        Shape (n, n), symmetric, at least 0.
    strength : float
        s: 0 keeps everyone's own; at 1 the best connected one keeps nothing of it.

    Returns
    -------
    NDArray
        Shape (n, n), rows and columns of sum 1.

    Raises
    ------
    DataError
        If the strength is not in [0, 1], or the adjacency is none.
    """
    if not 0 <= strength <= 1:
        raise DataError(f"strength {strength}; it must be from 0 to 1")
    a = adjacency_of(adjacency)
    degrees = a.sum(1)
    largest = degrees.max(initial=0.0)
    if largest == 0:
        return np.eye(len(a))
    laplacian = np.diag(degrees) - a
    matrix: Matrix = np.eye(len(a)) - strength / largest * laplacian
    return matrix
