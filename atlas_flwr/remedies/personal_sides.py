# SPDX-License-Identifier: Apache-2.0
"""Sides of the cut whose layers are personal, as FedPer's and LG-FedAvg's are.

Personal layers (arXiv 1912.00818, 2001.01523) are trained like all others, and neither
sent nor aggregated. FedPer keeps what is near the answers, LG-FedAvg what is near the
text: here the tail, the head, or both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from atlas_flwr.options import ADAPTER_STRATEGIES, Problem, option
from atlas_flwr.remedies.base import (
    PERSONAL,
    Blocks,
    ClientHooks,
    Remedy,
    RoundContext,
    ServerHooks,
)
from atlas_flwr.types import Side

if TYPE_CHECKING:
    from atlas_flwr.config.schema import RunConfig
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.remedies.personal_layers import PersonalLayers
    from atlas_flwr.split import SplitPlan

__all__ = ["PersonalKeys", "PersonalSides", "SidesKept"]

SIDES = {
    "none": frozenset[Side](),
    "head": frozenset({Side.HEAD}),
    "tail": frozenset({Side.TAIL}),
    "both": frozenset({Side.HEAD, Side.TAIL}),
}


@dataclass(frozen=True)
class PersonalKeys:
    """Keys of the run config."""

    personal: Literal["none", "head", "tail", "both"] = option(
        "none",
        "Sides of the cut whose adapters stay on their client, on its disk, and are "
        "neither sent nor aggregated. Try it where clients of one cluster differ.",
        only=ADAPTER_STRATEGIES,
    )


class PersonalSides(Remedy):
    """Lets layers of head or tail stay with their client."""

    name = "personal"

    def problems(self, config: RunConfig) -> Iterator[Problem]:
        """Want a side that clients have, of LoRA's factors, at ranks they keep."""
        personal = config.personal
        if personal == "none":
            return
        split = config.split if config.strategy in ADAPTER_STRATEGIES else "none"
        if personal != "head" and split == "vanilla":
            yield Problem(
                ("personal", "split"),
                f"personal={personal!r}: with split='vanilla' the trunk has the "
                "tail; set personal='head', or split='u-shaped'",
            )
        if split == "none":
            yield Problem(
                ("personal", "split"),
                f"personal={personal!r}: whole models have no sides; set "
                "personal='none', or split='u-shaped'",
            )
        if config.adapter != "lora":
            yield Problem(
                ("personal", "adapter"),
                f"personal={personal!r}: works with LoRA only; set personal='none', or "
                "adapter='lora'",
            )
        if config.rank_decay < 1:
            yield Problem(
                ("personal", "rank-decay"),
                f"personal={personal!r} with rank-decay={config.rank_decay}: the "
                "server keeps pruned ranks by what clients send, and personal layers "
                "are not sent; set personal='none', or rank-decay=1.0",
            )

    def kept_elsewhere(self, config: RunConfig) -> str:
        """Tell who loads a run's adapters that these are not all."""
        personal = config.personal
        if personal == "none":
            return ""
        sides = "head and tail" if personal == "both" else personal
        return (
            f"the adapters of the {sides} stayed with the clients "
            f"(`personal={personal!r}`), and each client's own belong to its answers."
        )

    def client(self, now: RoundContext) -> ClientHooks:
        """Put the client's own layers beside those that were sent, and keep them."""
        told = now.entries.get(PERSONAL)
        if told is None:
            return ClientHooks()
        from atlas_flwr.remedies.personal_layers import PersonalLayers

        return _Keeping(now, PersonalLayers.from_json(str(told)))

    def server(self, config: RunConfig, blocks: Blocks) -> ServerHooks:
        """Say which layers clients keep."""
        sides = SIDES[config.personal]
        return SidesKept(sides, blocks) if sides else ServerHooks()


@dataclass(frozen=True)
class _Keeping(ClientHooks):
    now: RoundContext
    layers: PersonalLayers

    def incoming(self, state: AdapterState) -> AdapterState:
        from atlas_flwr.remedies.personal_layers import own_state

        now = self.now
        start = now.start(self.layers.ranks, self.layers.dense)
        own = own_state(now.store(), start, now.scaling, before=now.before)
        return state.merged(own)

    def trained(self, state: AdapterState) -> AdapterState:
        from atlas_flwr.remedies.personal_layers import keep

        keep(self.now.store(), self.layers.part_of(state), self.now.round)
        return self.layers.rest_of(state)


@dataclass(frozen=True)
class SidesKept(ServerHooks):
    """Names the layers of some sides of the cut.

    Attributes
    ----------
    sides : frozenset[Side]
        Of head and tail.
    blocks : Blocks
        Of the whole model.
    """

    sides: frozenset[Side]
    blocks: Blocks

    def personal(self, plan: SplitPlan, state: AdapterState) -> PersonalLayers:
        """Say what a client with this cut keeps of a state."""
        from atlas_flwr.lora import PROMPT_KEY
        from atlas_flwr.remedies.personal_layers import PersonalLayers
        from atlas_flwr.split import SUMMARY_KEY

        trunk = plan.trunk_range(self.blocks.num_layers)
        ranks = {
            name: found.rank
            for name, found in state.factors.items()
            if self._side(name, trunk) in self.sides
        }
        # Learned positions around the texts are of no side: they stay common.
        own = [k for k in state.dense if k not in (PROMPT_KEY, SUMMARY_KEY)]
        dense = tuple(k for k in own if self._side(k, trunk) in self.sides)
        return PersonalLayers(ranks, dense)

    def _side(self, name: str, trunk: range) -> Side:
        block = self.blocks.block_of(name)
        if block is None or block >= trunk.stop:
            return Side.TAIL
        return Side.HEAD if block < trunk.start else Side.TRUNK
