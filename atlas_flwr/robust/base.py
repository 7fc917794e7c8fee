# SPDX-License-Identifier: Apache-2.0
r"""The seam of robust sums: how much of each update counts.

A rule sees the inner products <U_i, U_j> of a cluster's K updates and their weights,
and answers with coefficients c: the cluster moves by :math:`\sum_k c_k U_k`, where
without a rule it is :math:`\sum_k p_k U_k`. Every rule here is such a sum, so products
of LoRA factors need never be formed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["RobustRule", "capped_shares", "lower_median", "norms"]


class RobustRule(ABC):
    """How much of each client's update counts in its cluster.

    Parameters
    ----------
    bound : float
        Times the cluster's median: above it a weight, or a norm, is cut to it.
    bad_share : float
        Share of the clients that may be bad.

    Attributes
    ----------
    name : str
        As in the run config.
    """

    name: ClassVar[str]

    def __init__(self, bound: float = 2.0, bad_share: float = 0.25) -> None:
        self.bound = bound
        self.bad_share = bad_share

    @abstractmethod
    def coefficients(
        self, gram: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return c, shape (K,), of updates with these inner products.

        Parameters
        ----------
        gram : NDArray
            Shape (K, K).
        weights : NDArray
            Shape (K,), as the clients say, at least one above 0.
        """


def capped_shares(weights: NDArray[np.float64], bound: float) -> NDArray[np.float64]:
    """Return weights over their sum, none above ``bound`` times the lower median.

    A weight is what a client says of itself: without a limit it could say anything.
    """
    capped = np.minimum(weights, bound * lower_median(weights[weights > 0]))
    return np.asarray(capped / capped.sum())


def lower_median(values: NDArray[np.float64]) -> float:
    """Return the median of some values; of an even number the smaller middle one.

    Where at most half of the values are bad it is at most the largest good one.
    """
    return float(np.sort(values)[(len(values) - 1) // 2])


def norms(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the updates' norms, shape (K,)."""
    return np.sqrt(np.clip(np.diag(gram), 0, None))
