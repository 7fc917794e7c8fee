# SPDX-License-Identifier: Apache-2.0
"""Scores that count each class the same, however rare it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["balanced_accuracy", "macro_f1"]


def balanced_accuracy(confusion: NDArray[np.int64]) -> float:
    """Return the mean recall of the classes that occur.

    Parameters
    ----------
    confusion : NDArray
        Shape (C, C): examples by their class (rows) and the one predicted.
    """
    total = confusion.sum(axis=1)
    occurs = total > 0
    return float(np.mean(confusion.diagonal()[occurs] / total[occurs]))


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """Return the mean F1 of the classes that occur or were predicted.

    Parameters
    ----------
    confusion : NDArray
        See :func:`balanced_accuracy`.
    """
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    known = both > 0
    return float(np.mean(2 * confusion.diagonal()[known] / both[known]))
