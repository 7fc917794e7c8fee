# SPDX-License-Identifier: Apache-2.0
r"""Noised sketches: the analytic Gaussian mechanism.

Noise of standard deviation :math:`\sigma` on a vector of sensitivity :math:`\Delta` is
:math:`(\varepsilon, \delta)`-differentially private if and only if

.. math:: \Phi\left(\frac{\Delta}{2\sigma} - \frac{\varepsilon\sigma}{\Delta}\right)
    - e^\varepsilon
    \Phi\left(-\frac{\Delta}{2\sigma} - \frac{\varepsilon\sigma}{\Delta}\right)
    \le \delta

(Balle and Wang 2018, arXiv 1805.06530, theorem 8). Unlike the classical
:math:`\Delta \sqrt{2 \ln(1.25 / \delta)} / \varepsilon` it holds for every
:math:`\varepsilon`, and asks for less noise. We solve for :math:`\sigma` by bisection
of the left side, which falls as :math:`\sigma` grows, and not by the paper's two cases.

The noise is drawn in floating point, which leaks some low bits (Mironov 2012); whoever
fears an attacker who reads those rounds the sketch first.
"""

from __future__ import annotations

import math
import os

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtri

from atlas_flwr.errors import DataError

__all__ = ["gaussian_delta", "gaussian_sigma", "noised"]


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float = 2.0) -> float:
    """Return the least delta of noise sigma at a given epsilon.

    The left side of the inequality above.
    """
    half, scaled = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    first = float(np.exp(log_ndtr(half - scaled)))
    second = float(np.exp(epsilon + log_ndtr(-half - scaled)))
    return max(first - second, 0.0)


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float = 2.0) -> float:
    """Return the least sigma that is (epsilon, delta)-private.

    Parameters
    ----------
    epsilon : float
        Above 0.
    delta : float
        In (0, 1). Well under one over the number of clients.
    sensitivity : float
        How far two values of the vector can be apart. For a client's whole sketch of
        norm 1 at most it is 2: any data may stand in for any other (local privacy).

    Raises
    ------
    DataError
        If epsilon, delta or the sensitivity is outside its range.
    """
    if not (0 < epsilon < math.inf and 0 < delta < 1 and 0 < sensitivity < math.inf):
        raise DataError(
            f"epsilon={epsilon}, delta={delta}, sensitivity={sensitivity}; allowed: "
            "epsilon and sensitivity above 0, delta between 0 and 1"
        )
    low, high = 0.0, sensitivity
    while gaussian_delta(high, epsilon, sensitivity) > delta:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if gaussian_delta(middle, epsilon, sensitivity) > delta:
            low = middle
        else:
            high = middle
    return high  # the private end of what is left


def noised(
    sketch: NDArray[np.generic],
    epsilon: float,
    delta: float,
    *,
    seed: int | None = None,
) -> NDArray[np.float32]:
    """Clip a sketch to unit norm, and add noise that makes it private.

    Privacy is the client's, towards everyone: the server sees only the result. It
    costs dearly: at epsilon 8, delta 1e-5, sigma is 1.2, and over 256 numbers the
    noise's norm is 19 times the sketch's. Its own parts show that noise to
    :func:`atlas_flwr.clustering.cluster`, which then finds fewer clusters, not wrong
    ones; see ``docs/clustering.md``.

    Parameters
    ----------
    sketch : NDArray
        Any shape; its norm is that of all entries.
    epsilon, delta : float
        See :func:`gaussian_sigma`. Each sketch that a client sends spends them anew.
    seed : int, optional
        Who has it takes the noise off, so it is for tests and experiments. ``None``
        draws from the operating system, as a client must that means to be private.

    Returns
    -------
    NDArray
        Of the sketch's shape, float32.

    Raises
    ------
    DataError
        If the sketch is not finite, or epsilon or delta are out of range.
    """
    values = np.asarray(sketch, np.float64)
    norm = float(np.linalg.norm(values))
    if not math.isfinite(norm):
        raise DataError("the sketch has NaN or infinity; nothing can be clipped")
    sigma = gaussian_sigma(epsilon, delta)
    if seed is None:
        noise = sigma * _secret_normals(values.size).reshape(values.shape)
    else:
        noise = np.random.default_rng(seed).normal(0.0, sigma, values.shape)
    noisy: NDArray[np.float32] = (values / max(norm, 1.0) + noise).astype(np.float32)
    return noisy


def _secret_normals(count: int) -> NDArray[np.float64]:
    """Draw standard normals from the operating system's generator, by inversion."""
    words = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(12)
    normals: NDArray[np.float64] = ndtri((words + 0.5) / 2.0**52)  # never at 0 or 1
    return normals
