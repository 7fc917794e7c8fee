# SPDX-License-Identifier: Apache-2.0
"""Who each group's adapters are of, and what each of them weighs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from atlas_flwr.aggregation.contribution import Contribution

__all__ = ["Members"]


@dataclass
class Members:
    """The weights of groups' members, each a member of the last group it trained in.

    Attributes
    ----------
    by_group : dict[str, dict[str, float]]
        By group and client, the weight that the client came with last.
    """

    by_group: dict[str, dict[str, float]] = field(default_factory=dict)

    def count(self, group: str, parts: Iterable[Contribution]) -> None:
        """Note who has trained in a group: they are no other's any more."""
        weights = {c: w for part in parts for c, w in part.weights.items()}
        for known in self.by_group.values():
            for client in weights.keys() & known.keys():
                del known[client]
        self.by_group[group] = {**self.by_group.get(group, {}), **weights}

    def weight(self, group: str) -> float:
        """Return what a group's members weigh together; 0.0 without any."""
        return sum(self.by_group.get(group, {}).values())

    def regroup(self, after: Mapping[str, int]) -> None:
        """Let each be a member of its new group, and who has none of no group."""
        weights = {c: w for known in self.by_group.values() for c, w in known.items()}
        self.by_group = {}
        for client, label in after.items():
            if client in weights:
                self.by_group.setdefault(str(label), {})[client] = weights[client]
