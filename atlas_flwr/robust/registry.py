# SPDX-License-Identifier: Apache-2.0
"""The robust rules by name: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_flwr._arguments import check_choice
from atlas_flwr.robust.base import RobustRule
from atlas_flwr.robust.geometric_median import GeometricMedian
from atlas_flwr.robust.norm_bound import NormBound
from atlas_flwr.robust.trimmed import Trimmed

__all__ = ["ROBUST", "robust_rule"]

ROBUST: Mapping[str, type[RobustRule]] = {
    rule.name: rule for rule in (NormBound, GeometricMedian, Trimmed)
}


def robust_rule(name: str, bound: float, bad_share: float) -> RobustRule:
    """Return a rule by its name.

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    check_choice("robust", name, tuple(ROBUST))
    return ROBUST[name](bound, bad_share)
