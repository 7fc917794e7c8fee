# SPDX-License-Identifier: Apache-2.0
"""How well scores tell members from others, client by client, and how surely."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["auc"]

SAMPLES = 1000
Scores = NDArray[np.floating]


def auc(
    pairs: Sequence[tuple[Scores, Scores]], seed: int
) -> tuple[float, tuple[float, float]]:
    """Return the area under the curve, and its 95 % interval.

    It is the share of pairs of a member and another of the same client of which the
    member has the greater score, ties half (Mann and Whitney): clients of unlike tasks
    are not compared.

    Parameters
    ----------
    pairs : Sequence[tuple[NDArray, NDArray]]
        By client: its members' scores, and others'; none of them empty.
    seed : int
        Of the resampling, of members and others within each client.
    """
    rng = np.random.default_rng(seed)
    wins = [_wins(members, others) for members, others in pairs]

    def area(drawn: bool) -> float:
        found, count = 0.0, 0
        for table in wins:
            rows, columns = table.shape
            if drawn:
                at = rng.integers(rows, size=rows), rng.integers(columns, size=columns)
                table = table[np.ix_(*at)]
            found, count = found + float(table.sum()), count + table.size
        return found / count

    drawn = [area(drawn=True) for _ in range(SAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return area(drawn=False), (float(low), float(high))


def _wins(members: Scores, others: Scores) -> Scores:
    off = members[:, None] - others[None, :]
    table: Scores = (off > 0) + 0.5 * (off == 0)
    return table
