# SPDX-License-Identifier: Apache-2.0
"""Phase 4: how the adapters of a group become one, and come back to its clients."""

from typing import TYPE_CHECKING

from atlas_flwr._lazy import attach

if TYPE_CHECKING:
    from atlas_flwr.aggregation.contribution import Contribution
    from atlas_flwr.aggregation.registry import AGGREGATIONS, rule_of
    from atlas_flwr.aggregation.rule import Rule, Start

__all__ = ["AGGREGATIONS", "Contribution", "Rule", "Start", "rule_of"]

__getattr__, __dir__ = attach(
    __name__,
    {
        "AGGREGATIONS": "registry",
        "rule_of": "registry",
        "Contribution": "contribution",
        "Rule": "rule",
        "Start": "rule",
    },
)
