# SPDX-License-Identifier: Apache-2.0
"""Layers that stay with their client: which they are, and how a client is told.

Personal layers, as FedPer's (arXiv 1912.00818) and LG-FedAvg's (arXiv 2001.01523), are
trained like all others, and neither sent nor aggregated. The server says which they are
and at which ranks; the rest is between a client and its disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from atlas_flwr.lora import PROMPT_KEY, AdapterState
from atlas_flwr.split import SUMMARY_KEY, SplitPlan
from atlas_flwr.types import Side

__all__ = ["Kept", "PersonalSides"]


@dataclass(frozen=True)
class Kept:
    """What a client keeps to itself.

    Attributes
    ----------
    ranks : Mapping[str, int]
        By layer.
    dense : tuple[str, ...]
        Keys of arrays that are trained in full.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    dense: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Write it, to go into a message's configuration."""
        return json.dumps({"ranks": dict(self.ranks), "dense": list(self.dense)})

    @classmethod
    def from_json(cls, text: str) -> Kept:
        """Read what :meth:`to_json` wrote."""
        found = json.loads(text)
        return cls(found["ranks"], tuple(found["dense"]))

    def part_of(self, state: AdapterState) -> AdapterState:
        """Return what of a state is kept."""
        dense = {key: state.dense[key] for key in self.dense}
        return state.select(self.ranks, dense)

    def rest_of(self, state: AdapterState) -> AdapterState:
        """Return what of a state is not."""
        dense = {k: v for k, v in state.dense.items() if k not in self.dense}
        return state.select(state.layers - set(self.ranks), dense)


@dataclass(frozen=True)
class PersonalSides:
    """The sides of a cut whose layers are personal.

    Attributes
    ----------
    sides : frozenset[Side]
        Of head and tail.
    layer_block : Callable[[str], int | None]
        Block of a layer's name; ``None`` for what comes after all of them.
    num_layers : int
        Blocks of the whole model.
    """

    sides: frozenset[Side]
    layer_block: Callable[[str], int | None]
    num_layers: int

    def kept(self, plan: SplitPlan, state: AdapterState) -> Kept:
        """Say what a client with this cut keeps of a state."""
        trunk = plan.trunk_range(self.num_layers)
        ranks = {
            name: found.rank
            for name, found in state.factors.items()
            if self._side(name, trunk) in self.sides
        }
        # Learned positions around the texts are of no side: they stay common.
        own = [k for k in state.dense if k not in (PROMPT_KEY, SUMMARY_KEY)]
        dense = tuple(k for k in own if self._side(k, trunk) in self.sides)
        return Kept(ranks, dense)

    def _side(self, name: str, trunk: range) -> Side:
        block = self.layer_block(name)
        if block is None or block >= trunk.stop:
            return Side.TAIL
        return Side.HEAD if block < trunk.start else Side.TRUNK
