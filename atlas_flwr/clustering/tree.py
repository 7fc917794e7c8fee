# SPDX-License-Identifier: Apache-2.0
r"""How many clusters: as many as differ by more than noise.

Points are merged to a tree by Ward's method. From its root down, a subtree of c of the
n points is cut in two where its points differ by more than

.. math:: v = \hat\sigma^2 + \rho \hat\tau^2

with :math:`\hat\sigma^2` the noise of these points, told from their parts, and
:math:`\hat\tau^2` the variance between all n points less their noise: a share
:math:`\rho` of it is allowed within clusters, whose clients are alike and not the same.
Two tests, each at half the level (Bonferroni):

- all together: :math:`\frac{1}{c - 1} \sum_i \lVert x_i - \bar x \rVert^2 / v
  \sim F((c - 1) \nu, c (P - 1) \nu)`, see :mod:`atlas_flwr.clustering.noise`;
- two groups: the cost of the subtree's last merge over v, against 999 draws of c points
  of normal noise in :math:`\nu` dimensions that are merged alike.

The level of a subtree is :math:`\alpha (c - 1) / (n - 1)` (hierarchical testing after
Meinshausen 2008, Biometrika 95): the whole tree cuts a cluster of one task with
probability :math:`\alpha` at most, as far as noise is normal. In particular, where all
are of one task there is one cluster with probability :math:`1 - \alpha`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage
from scipy.stats import f as f_distribution

from atlas_flwr.clustering.noise import Noise

__all__ = ["count_beyond_noise"]

TOLERANCE = 0.1  # rho: of seeds 100-106 of docs/clustering.md, which report others
_DRAWS = 999
_MOST = 64  # points; of larger subtrees only the first test is made


@dataclass(frozen=True, eq=False)
class _Tree:
    """Ward's tree; node i < n is point i, node n + j the j-th merge."""

    members: list[list[int]]
    children: list[tuple[int, int]]
    costs: list[float]

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> _Tree:
        members = [[i] for i in range(len(rows))]
        children = [(-1, -1)] * len(rows)
        costs = [0.0] * len(rows)
        for left, right, height, _ in linkage(rows, "ward"):
            pair = int(left), int(right)
            members.append(members[pair[0]] + members[pair[1]])
            children.append(pair)
            costs.append(float(height) ** 2 / 2)  # rise of the sum of squares
        return cls(members, children, costs)


def count_beyond_noise(
    parts: NDArray[np.float64],
    most: int,
    *,
    level: float = 0.05,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> int:
    """Count the clusters that noise does not explain.

    Parameters
    ----------
    parts : NDArray
        Shape (n, P, dim), P >= 2: points in parts.
    most : int
        Stop at so many; those that differ most are told apart first.
    level : float
        alpha above.
    tolerance : float
        rho above: 0 tells apart all that can be told apart.
    seed : int
        Draws the noise.
    """
    n = len(parts)
    if n == 1 or most == 1:
        return 1
    noise = Noise.of(parts)
    rows = parts.mean(1)
    variances = noise.variances / parts.shape[1]  # of the rows
    allowed = tolerance * max(_spread(rows) - float(variances.mean()), 0.0)
    tree = _Tree.of(rows)
    root = len(tree.costs) - 1
    count, waiting = 1, [(-tree.costs[root], root)]
    while waiting and count < most:
        _, node = heappop(waiting)
        members = tree.members[node]
        size = len(members)
        scale = float(variances[members].mean()) + allowed
        of_all = _spread(rows[members]), tree.costs[node]
        p_value = _p_value(*of_all, scale, size, noise, seed)
        if p_value > level * (size - 1) / (n - 1):
            continue
        count += 1
        for child in tree.children[node]:
            if child >= n:
                heappush(waiting, (-tree.costs[child], child))
    return count


def _spread(rows: NDArray[np.float64]) -> float:
    """Variance of points around their mean, summed over coordinates."""
    return float(((rows - rows.mean(0)) ** 2).sum() / (len(rows) - 1))


def _p_value(
    spread: float, cost: float, scale: float, size: int, noise: Noise, seed: int
) -> float:
    """Return how likely noise is to spread so many points so far."""
    if scale <= 0:  # no noise at all: any difference is one
        return float(spread <= 1e-18)
    freedom = size * noise.freedom
    among = (size - 1) * noise.dims
    of_all = f_distribution.sf(spread / scale, among, freedom * noise.dims)
    if not 2 < size <= _MOST:
        return float(of_all)
    drawn = _last_costs(size, round(noise.dims), freedom, seed)
    of_two = (1 + int((drawn >= cost / scale).sum())) / (1 + _DRAWS)
    return min(2 * min(float(of_all), of_two), 1.0)


@lru_cache(maxsize=256)
def _last_costs(count: int, dims: int, freedom: int, seed: int) -> NDArray[np.float64]:
    """Draw the cost of the last merge of noise, over the noise as estimated."""
    rng = np.random.default_rng(seed)
    costs = np.empty(_DRAWS)
    for i in range(_DRAWS):
        points = rng.standard_normal((count, dims))
        estimate = rng.chisquare(freedom * dims) / freedom
        costs[i] = linkage(points, "ward")[-1, 2] ** 2 / 2 / estimate
    return costs
