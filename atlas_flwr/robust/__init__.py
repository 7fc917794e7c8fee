# SPDX-License-Identifier: Apache-2.0
"""Sums that a minority of bad clients cannot move far, by the updates' Gram matrix."""

from atlas_flwr.robust.base import RobustRule
from atlas_flwr.robust.registry import ROBUST, robust_rule

__all__ = ["ROBUST", "RobustRule", "robust_rule"]
