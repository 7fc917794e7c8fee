# SPDX-License-Identifier: Apache-2.0
r"""The geometric median of updates: the point nearest to all, not squared.

.. math:: v = \arg\min_v \sum_k \lVert U_k - v \rVert

(RFA, arXiv 1912.13445), by the steps of Weiszfeld as Vardi and Zhang mended them (PNAS
97(4), 2000), on coefficients alone: v is a weighted mean of the updates. Each client
counts the same, as its weight is what it says of itself. If a share alpha < 1/2 of them
is bad and the others lie within r of a point z, then
:math:`\lVert v - z \rVert \le 2 (1 - \alpha) / (1 - 2 \alpha) r` (Lopuhaa and
Rousseeuw, Annals of Statistics 19(1), 1991), whatever the bad ones send.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.robust.base import RobustRule, capped_shares

__all__ = ["GeometricMedian", "distances", "geometric_median"]

_STEPS = 10_000
_NEAR = 1e-9  # relative to the median distance: an update so near is where v is


class GeometricMedian(RobustRule):
    """Moves a cluster to where most of its clients agree."""

    name = "geometric-median"

    def coefficients(
        self, gram: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the median's coefficients, which sum to 1."""
        takes_part = np.flatnonzero(weights > 0)
        if len(takes_part) < 3:
            return capped_shares(weights, self.bound)
        c = np.zeros(len(weights))
        c[takes_part] = geometric_median(gram[np.ix_(takes_part, takes_part)])
        return c


def geometric_median(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return c, shape (K,), with v = sum_k c_k U_k; it sums to 1."""
    count = len(gram)
    # Begin at the update that is nearest to all others: a bad one may be as far as it
    # likes, and from the mean it would take as many more steps.
    between = np.stack([distances(gram, row) for row in np.eye(count)])
    c = np.eye(count)[int(np.argmin(between.sum(1)))]
    least = _NEAR * float(np.median(between))
    for _ in range(_STEPS):
        away = distances(gram, c)
        here = away <= least
        pull = np.where(here, 0.0, 1 / np.where(here, 1.0, away))
        if not pull.sum():
            break
        mean = pull / pull.sum()
        step = _length(gram, mean - c)
        held = int(np.count_nonzero(here)) / max(float(pull.sum()) * step, 1e-300)
        if held >= 1:
            break  # v is an update, and the others do not pull it away
        c = (1 - held) * mean + held * c
        if (1 - held) * step <= least:
            break
    return np.asarray(c)


def distances(gram: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each update is from sum_k c_k U_k, shape (K,)."""
    squares = np.diag(gram) - 2 * gram @ c + c @ gram @ c
    return np.sqrt(np.clip(squares, 0, None))


def _length(gram: NDArray[np.float64], c: NDArray[np.float64]) -> float:
    square = float(c @ gram @ c)
    return math.sqrt(max(square, 0.0))
