# SPDX-License-Identifier: Apache-2.0
r"""Importances over time and over a cluster, and how far they have moved.

.. math:: I_t(W) = \sum |W \, \partial L / \partial W| / c(W), \quad
          \bar I_t = \beta_t I_t + (1 - \beta_t) \bar I_{t-1}, \quad
          \bar I(W) = \sum_k p_k \bar I_k(W)

following HSplitLoRA (arXiv 2505.02795); c(W) is what one rank of W's adapter takes of
memory. beta_t is 1 / t until it falls to a floor: a plain mean first, a moving one
later (the paper's own schedule is not published). p_k is a client's share of its
cluster's examples. A client's importances are scaled to
sum 1, so that one with a large loss does not outvote the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from atlas_flwr.errors import BudgetError

__all__ = ["averaged", "blended", "distance", "per_byte"]

Importance = Mapping[str, float]

# What a rank takes for each row and column: a parameter, its gradient and Adam's two
# means, in float32.
_BYTES_A_NUMBER = 16


def per_byte(
    sensitivity: Importance, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, float]:
    """Divide by c(W) = 16 (d_out + d_in), in bytes, and scale to sum 1.

    Parameters
    ----------
    sensitivity : Mapping[str, float]
        Sum of abs(W dL/dW) by layer, at least 0; layers without a shape are left out.
    shapes : Mapping[str, tuple[int, int]]
        (d_out, d_in) by layer.

    Raises
    ------
    BudgetError
        If a number is negative or not finite, or all are 0.
    """
    raw = {
        name: value / (_BYTES_A_NUMBER * sum(shapes[name]))
        for name, value in sensitivity.items()
        if name in shapes
    }
    total = sum(raw.values())
    if not 0 < total < float("inf") or min(raw.values()) < 0:
        raise BudgetError(
            f"importances of {len(raw)} layers sum to {total}; they must be finite, at "
            "least 0, and not all 0: did a backward pass reach the layers?"
        )
    return {name: value / total for name, value in raw.items()}


def blended(
    before: Importance | None, found: Importance, count: int, floor: float = 0.3
) -> dict[str, float]:
    """Take a new measurement into a moving mean.

    Parameters
    ----------
    before : Mapping[str, float], optional
        The mean so far.
    found : Mapping[str, float]
        The measurement.
    count : int
        Its number, from 1.
    floor : float
        Smallest weight that a new measurement gets.
    """
    if before is None:
        return dict(found)
    beta = max(1 / count, floor)
    names = dict.fromkeys([*before, *found])
    return {
        n: beta * found.get(n, 0.0) + (1 - beta) * before.get(n, 0.0) for n in names
    }


def averaged(
    members: Sequence[Importance], examples: Sequence[float] | None = None
) -> dict[str, float]:
    """Average over the members of a cluster.

    Parameters
    ----------
    members : Sequence[Mapping[str, float]]
        Their importances.
    examples : Sequence[float], optional
        How many each has, by which p_k is its share; ``None``: all as many.
    """
    weights = examples or [1.0] * len(members)
    total = sum(weights)
    shares = [w * len(members) / total for w in weights]  # 1 exactly for equal ones
    names = dict.fromkeys(name for member in members for name in member)
    return {
        n: sum(p * m.get(n, 0.0) for p, m in zip(shares, members, strict=True))
        / len(members)
        for n in names
    }


def distance(one: Importance, other: Importance) -> float:
    """Return the total variation distance of two importances of sum 1, in [0, 1]."""
    names = {*one, *other}
    return math.fsum(abs(one.get(n, 0.0) - other.get(n, 0.0)) for n in names) / 2
