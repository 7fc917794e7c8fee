# SPDX-License-Identifier: Apache-2.0
r"""How much of a fingerprint is noise, told from its parts.

A fingerprint's parts are sketches of disjoint batches of one client: they differ by the
draw of examples alone. With :math:`\Sigma` a part's covariance,
:math:`\operatorname{tr} \Sigma` is what squared distances have of noise, and

.. math:: \nu = (\operatorname{tr} \Sigma)^2 / \operatorname{tr} \Sigma^2

the number of dimensions over which it is spread: a squared norm of normal noise is
approximately :math:`\operatorname{tr} \Sigma / \nu` times a chi-squared variable of
:math:`\nu` degrees of freedom (Box 1954, Ann. Math. Statist. 25, theorem 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Noise"]


@dataclass(frozen=True, eq=False)
class Noise:
    r"""The noise of fingerprints of two parts or more.

    Attributes
    ----------
    variances : NDArray
        Shape (n,): for each client, an unbiased estimate of a part's
        :math:`\operatorname{tr} \Sigma`.
    dims : float
        :math:`\nu`, in [1, dim], estimated from all of them; lower by about a standard
        error than what is likeliest, since few clients tell it badly, and too large a
        :math:`\nu` makes noise seem more regular than it is.
    freedom : int
        Parts of a client, less one.
    """

    variances: NDArray[np.float64]
    dims: float
    freedom: int

    @classmethod
    def of(cls, parts: NDArray[np.float64]) -> Noise:
        """Estimate it from parts of shape (n, P, dim), P >= 2.

        The clients' noises must be independent of each other.
        """
        n, count, dim = parts.shape
        inside = parts - parts.mean(1, keepdims=True)
        variances = (inside**2).sum((1, 2)) / (count - 1)
        return cls(variances, _dims(inside, variances, n, dim), count - 1)


def _dims(
    inside: NDArray[np.float64], variances: NDArray[np.float64], n: int, dim: int
) -> float:
    """Estimate nu; both traces without bias, from products of unlike clients."""
    if n < 2:
        return 1.0  # unknown: the most cautious
    freedom = inside.shape[1] - 1
    scatter = np.einsum("npi,npj->ij", inside, inside) / freedom
    # sum over i of |S_i|^2, by the small Gram matrices of each client's parts
    grams = np.einsum("npi,nqi->npq", inside, inside) / freedom
    pairs = n * (n - 1)
    error = (2 / (pairs / 2 * freedom**2)) ** 0.5  # relative, of squares
    squares = ((scatter**2).sum() - (grams**2).sum()) / pairs
    traces = (variances.sum() ** 2 - (variances**2).sum()) / pairs
    if squares <= 0:
        return float(dim)
    return float(np.clip(traces / (squares * (1 + error)), 1.0, dim))
