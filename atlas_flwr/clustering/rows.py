# SPDX-License-Identifier: Apache-2.0
"""Fingerprints as rows whose distances mean something.

Every client's gradient has a large part in common with all others; the mean is
therefore subtracted, and what is left scaled to unit norm, before distances are taken.
Shapes: n points, P parts (sketches of disjoint batches), dim coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

__all__ = ["Rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Points, centred and scaled.

    Attributes
    ----------
    values : NDArray
        Shape (n, dim): unit vectors, or 0 where a point is the mean.
    parts : NDArray
        Shape (n, P, dim): each point's parts, whose mean its row is.
    mean : NDArray
        Shape (dim,): what was subtracted.
    """

    values: NDArray[np.float64]
    parts: NDArray[np.float64]
    mean: NDArray[np.float64]

    @classmethod
    def of(
        cls, points: NDArray[np.generic], mean: NDArray[np.float64] | None = None
    ) -> Rows:
        """Centre and scale points.

        Parameters
        ----------
        points : NDArray
            Shape (n, dim), or (n, P, dim). Parts are scaled together first, so that
            their mean has unit norm: integer codes of any scale will do.
        mean : NDArray, optional
            Subtracted in place of the points' own.

        Raises
        ------
        DataError
            If there is no point, or a coordinate is not finite.
        """
        found = np.asarray(points, np.float64)
        if found.ndim not in (2, 3) or not found.size or not np.isfinite(found).all():
            raise DataError(
                f"points of shape {found.shape}: (n, dim) or (n, parts, dim), n >= 1, "
                "all finite"
            )
        if found.ndim == 3:
            found = found * _inverse(found.mean(1))[:, None, None]
        else:
            found = found[:, None]
        origin = found.mean((0, 1)) if mean is None else mean
        centred = found - origin
        parts = centred * _inverse(centred.mean(1))[:, None, None]
        return cls(parts.mean(1), parts, origin)


def _inverse(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 over each row's norm, or 0 for rows of no length."""
    norms = np.linalg.norm(rows, axis=1)
    out: NDArray[np.float64] = np.zeros_like(norms)
    np.divide(1.0, norms, out=out, where=norms > 1e-12)
    return out
