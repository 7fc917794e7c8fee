# SPDX-License-Identifier: Apache-2.0
"""The rules of aggregation by name: a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping

from atlas_flwr.aggregation.means import Mean, SparsityMean
from atlas_flwr.aggregation.products import Both, Fold, Truncate
from atlas_flwr.aggregation.rule import Rule

__all__ = ["AGGREGATIONS"]

AGGREGATIONS: Mapping[str, type[Rule]] = {
    "both": Both,
    "fold": Fold,
    "mean": Mean,
    "sparsity-mean": SparsityMean,
    "truncate": Truncate,
}
