# SPDX-License-Identifier: Apache-2.0
"""How large A is beside B, where somebody changes both between two rounds.

Who adds noise to A and B (Flower's wrappers for differential privacy), or clips them,
does so by their numbers. Were A made as small as at first in each round, what was added
to it would go to B, and the product would grow by a factor each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import mul

from atlas_flwr.aggregation.contribution import Contribution, layer_names, shares
from atlas_flwr.lora import AdapterState, LoraFactors

__all__ = ["row_norms", "with_row_norms"]


def row_norms(parts: Sequence[Contribution]) -> dict[str, float]:
    """Return the norm of A's rows by layer, as the clients have trained them.

    It is the root of the weighted mean square over clients and rows.
    """
    found: dict[str, float] = {}
    for name in layer_names(parts):
        have = [part for part in parts if name in part.state.factors]
        squares = [_row_norm(part.state.factors[name]) ** 2 for part in have]
        found[name] = sum(map(mul, shares(have), squares)) ** 0.5
    return found


def with_row_norms(state: AdapterState, norms: Mapping[str, float]) -> AdapterState:
    """Scale A and B against each other, so that A's rows have those norms.

    The products stay as they are. Layers without a norm are left.
    """
    factors = dict(state.factors)
    for name, found in state.factors.items():
        ratio = norms.get(name, 0.0) / _row_norm(found)
        if ratio > 0:
            factors[name] = LoraFactors(found.A * ratio, found.B / ratio, found.scale)
    return replace(state, factors=factors)


def _row_norm(factors: LoraFactors) -> float:
    size = float(factors.A.norm())
    return size / math.sqrt(factors.rank)
