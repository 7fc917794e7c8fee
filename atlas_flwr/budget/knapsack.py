# SPDX-License-Identifier: Apache-2.0
"""The multiple-choice knapsack: one option of each item, the most gain, within a cost.

Solved exactly by dynamic programming over the costs' common unit. Where that would need
too large a table, costs are rounded up to a coarser unit: the result stays within the
capacity and may fall short of the best by what the rounding wastes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import BudgetError

__all__ = ["Item", "knapsack"]

_MOST_UNITS = 1 << 16


@dataclass(frozen=True)
class Item:
    """What may be chosen of one thing.

    Attributes
    ----------
    gains : tuple[float, ...]
        Of each option.
    costs : tuple[int, ...]
        Of each option, at least 0, in any one unit.
    """

    gains: tuple[float, ...]
    costs: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.costs or len(self.gains) != len(self.costs) or min(self.costs) < 0:
            raise BudgetError(
                f"gains {self.gains} and costs {self.costs}: as many of the one as of "
                "the other, at least one, and no cost below 0"
            )


def knapsack(items: Sequence[Item], capacity: int) -> list[int]:
    """Choose one option of each item.

    Parameters
    ----------
    items : Sequence[Item]
        Any number, with options in any order.
    capacity : int
        The most that the chosen options may cost together.

    Returns
    -------
    list[int]
        The option of each item; of choices with the same gain, a cheap one.

    Raises
    ------
    BudgetError
        If even the cheapest options cost more.
    """
    floor = sum(min(item.costs) for item in items)
    if floor > capacity:
        raise BudgetError(f"the cheapest options cost {floor}, more than {capacity}")
    greedy = [_best_option(item) for item in items]
    if sum(i.costs[o] for i, o in zip(items, greedy, strict=True)) <= capacity:
        return greedy
    # Every item's cheapest option is paid for first; only what is above it is weighed.
    extra = [[cost - min(item.costs) for cost in item.costs] for item in items]
    unit = gcd(*(cost for costs in extra for cost in costs)) or 1
    unit = max(unit, -(-(capacity - floor) // _MOST_UNITS))
    units = [[-(-cost // unit) for cost in costs] for costs in extra]
    return _filled(items, units, (capacity - floor) // unit)


def _best_option(item: Item) -> int:
    return max(range(len(item.gains)), key=lambda o: (item.gains[o], -item.costs[o]))


def _filled(
    items: Sequence[Item], units: Sequence[Sequence[int]], size: int
) -> list[int]:
    best: NDArray[np.float64] = np.zeros(size + 1)
    taken = np.zeros((len(items), size + 1), np.int16)
    for row, (item, costs) in enumerate(zip(items, units, strict=True)):
        found = np.full(size + 1, -np.inf)
        for option in sorted(range(len(costs)), key=lambda o: costs[o]):
            cost = costs[option]
            if cost > size:
                continue
            with_it = best[: size + 1 - cost] + item.gains[option]
            is_better = with_it > found[cost:]
            found[cost:][is_better] = with_it[is_better]
            taken[row, cost:][is_better] = option
        best = found
    left, chosen = size, []
    for row in range(len(items) - 1, -1, -1):
        option = int(taken[row, left])
        chosen.append(option)
        left -= units[row][option]
    return chosen[::-1]
