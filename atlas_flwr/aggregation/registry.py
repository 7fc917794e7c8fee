# SPDX-License-Identifier: Apache-2.0
"""The rules of aggregation by name: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_flwr._arguments import check_choice
from atlas_flwr.aggregation.means import Mean, SparsityMean
from atlas_flwr.aggregation.products import Both, Fold, Truncate
from atlas_flwr.aggregation.rule import Rule

__all__ = ["AGGREGATIONS", "rule_of"]

AGGREGATIONS: Mapping[str, type[Rule]] = {
    "both": Both,
    "fold": Fold,
    "mean": Mean,
    "sparsity-mean": SparsityMean,
    "truncate": Truncate,
}


def rule_of(aggregation: str) -> type[Rule]:
    """Return the rule of a strategy's argument.

    With ``"none"`` every client is a group of its own, by the rule ``"truncate"``.

    Raises
    ------
    ValueError
        If there is no such rule.
    """
    check_choice("aggregation", aggregation, (*AGGREGATIONS, "none"))
    return AGGREGATIONS["truncate" if aggregation == "none" else aggregation]
