# SPDX-License-Identifier: Apache-2.0
"""Names for groups that were found without any: the best for the attacker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

__all__ = ["best_names"]


def best_names(
    owners: Sequence[str],
    groups: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Name each owner's groups by labels, one for one, so that most are right.

    Parameters
    ----------
    owners : Sequence[str]
        Whose each is.
    groups, labels : Sequence[Sequence[int]]
        One number each.
    """
    named = [[-1] for _ in groups]
    for owner in set(owners):
        mine = [i for i, whose in enumerate(owners) if whose == owner]
        size = 1 + max(max(groups[i][0], labels[i][0]) for i in mine)
        table = np.zeros((size, size))
        for i in mine:
            table[groups[i][0], labels[i][0]] += 1
        rows, columns = linear_sum_assignment(-table)
        names = dict(zip(rows.tolist(), columns.tolist(), strict=True))
        for i in mine:
            named[i] = [names[groups[i][0]]]
    return named
