# SPDX-License-Identifier: Apache-2.0
"""Several remedies' hooks as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from atlas_flwr.remedies.base import Average, ClientHooks, ServerHooks

if TYPE_CHECKING:
    from atlas_flwr.data import Batch, Collator, Shard
    from atlas_flwr.lora import AdapterState
    from atlas_flwr.lora.update import Update
    from atlas_flwr.remedies.personal_layers import PersonalLayers
    from atlas_flwr.split import SplitPlan
    from atlas_flwr.train.model import ClientModel
    from atlas_flwr.train.step import Step, StepLoss
    from atlas_flwr.types import TrunkClient

__all__ = ["ClientChain", "ServerChain"]


@dataclass(frozen=True)
class ClientChain(ClientHooks):
    """Hooks of several remedies, each seeing what those before it have made.

    Of a step's loss the first is the outermost. What goes to the server leaves in the
    reverse order of what came from it.

    Attributes
    ----------
    links : Sequence[ClientHooks]
        The hooks.
    """

    links: Sequence[ClientHooks]

    def incoming(self, state: AdapterState) -> AdapterState:
        """Let each change the adapters that the client is to have."""
        for link in self.links:
            state = link.incoming(state)
        return state

    def trunk(self, trunk: TrunkClient) -> TrunkClient:
        """Let each stand before the trunk, the first nearest to it."""
        for link in self.links:
            trunk = link.trunk(trunk)
        return trunk

    def guard(self, trunk: TrunkClient) -> TrunkClient:
        """Let each stand before the trunk, the first nearest to it."""
        for link in self.links:
            trunk = link.guard(trunk)
        return trunk

    def own(self, shard: Shard) -> Shard:
        """Let each change what the client has."""
        for link in self.links:
            shard = link.own(shard)
        return shard

    def collating(self, collate: Collator) -> Collator:
        """Let each change how texts become tokens."""
        for link in self.links:
            collate = link.collating(collate)
        return collate

    def shard(self, shard: Shard, model: Any, collate: Collator) -> Shard:
        """Let each choose among the examples that are left."""
        for link in self.links:
            shard = link.shard(shard, model, collate)
        return shard

    def begin(self, adapted: ClientModel, batches: Sequence[Batch]) -> None:
        """Let each see the model and the batches."""
        for link in reversed(self.links):
            link.begin(adapted, batches)

    def step(self, step: Step, proceed: Callable[[Step], StepLoss]) -> StepLoss:
        """Let each stand around what follows it."""
        for link in reversed(self.links):
            proceed = partial(link.step, proceed=proceed)
        return proceed(step)

    def trained(self, state: AdapterState) -> AdapterState:
        """Let each change the adapters that go back."""
        for link in reversed(self.links):
            state = link.trained(state)
        return state

    def metrics(self) -> Mapping[str, int | float]:
        """Return what each tells.

        Raises
        ------
        ValueError
            If two of them use one name.
        """
        told: dict[str, int | float] = {}
        for link in self.links:
            found = link.metrics()
            if twice := told.keys() & found.keys():
                raise ValueError(f"two remedies report a metric {min(twice)!r}")
            told |= found
        return told


@dataclass(frozen=True)
class ServerChain(ServerHooks):
    """Hooks of several remedies on the server, in their order.

    Attributes
    ----------
    links : Sequence[ServerHooks]
        The hooks.
    """

    links: Sequence[ServerHooks]

    def counts(
        self, group: str, updates: Callable[[], Sequence[Update]]
    ) -> Sequence[float] | None:
        """Let the first that has something to say of a group's updates say it."""
        said = (link.counts(group, updates) for link in self.links)
        return next((counts for counts in said if counts is not None), None)

    def personal(self, plan: SplitPlan, state: AdapterState) -> PersonalLayers | None:
        """Join what each says that a client keeps."""
        named = [link.personal(plan, state) for link in self.links]
        found = [layers for layers in named if layers is not None]
        return reduce(lambda one, other: one.joined(other), found) if found else None

    def combined(
        self, before: AdapterState, after: AdapterState, average: Average
    ) -> AdapterState:
        """Let each change what a group's members have made."""
        for link in self.links:
            after = link.combined(before, after, average)
        return after
