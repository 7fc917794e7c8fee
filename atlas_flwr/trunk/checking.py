# SPDX-License-Identifier: Apache-2.0
"""Spot checks: a client computes one text of one call itself, and compares.

It does so block by block from its own checkpoint, with the adapters that the server
sent it beside its own, and holds one block at a time. They are right until the trunk
first steps them, so what is checked is the first call of a training round, or any one
of an evaluation. That finds a host with other weights, of another precision, with
adapters of before, or broken; not one that lies after the first step, or in gradients.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from atlas_flwr.budget.chains import Link
from atlas_flwr.errors import TrunkError
from atlas_flwr.split import SplitPlan
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.trunk.peer_model import part_of
from atlas_flwr.trunk.session import SessionSpec
from atlas_flwr.trunk.source import TrunkSource
from atlas_flwr.types import TrunkCall

__all__ = ["CheckedTrunk", "OwnTrunk"]

# Of the norm of what the trunk changes: far above what sound machines differ by.
FLOAT32, HALF = 5e-3, 1e-1


@dataclass(frozen=True)
class OwnTrunk:
    """A trunk of which one block is held at a time.

    Parameters
    ----------
    source : Callable[[SplitPlan], TrunkSource]
        Loads a plan's trunk.
    spec : SessionSpec
        What the server opened the session with.
    num_layers : int
        Blocks of the whole model.
    layer_block : Callable[[str], int | None]
        Block of a layer.
    """

    source: Callable[[SplitPlan], TrunkSource]
    spec: SessionSpec
    num_layers: int
    layer_block: Callable[[str], int | None]

    def answer(self, call: TrunkCall) -> Tensor:
        """Run a call through all blocks, one after the other."""
        for block in self.spec.plan.trunk_range(self.num_layers):
            link = Link("", block, block + 1)
            part = part_of(self.spec, link, self.num_layers, self.layer_block)
            assert part is not None
            engine = self.source(part.plan).engine()
            hidden = engine.forward(engine.open(part), replace(call, step=None))
            call = replace(call, hidden=hidden)
        return call.hidden


@dataclass
class CheckedTrunk(PassingTrunk):
    """Compare one text of one call with an own computation.

    Parameters
    ----------
    trunk : TrunkClient
        Whose answers are checked.
    own : OwnTrunk
        Computes it.

    Attributes
    ----------
    checked : int
        Calls that were compared: 1 at most.
    """

    own: OwnTrunk
    checked: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks, and if it is this call's turn check the answer.

        Raises
        ------
        TrunkError
            If they differ.
        """
        answer = self.trunk.forward(call)
        is_due = self._calls == 0 if call.step is not None else secrets.randbelow(2)
        self._calls += 1
        if is_due and not self.checked:
            self._check(call, answer)
            self.checked += 1
        return answer

    def _check(self, call: TrunkCall, answer: Tensor) -> None:
        row = secrets.randbelow(len(call.hidden))
        mask, positions = call.attention_mask, call.position_ids
        one = replace(
            call,
            hidden=call.hidden[row : row + 1].detach(),
            attention_mask=None if mask is None else mask[row : row + 1],
            position_ids=_row(positions, row),
            padding_unread=False,
        )
        real = torch.ones(answer.shape[1], dtype=torch.bool)
        if mask is not None:
            real = mask[row].cpu() != 0
        own = self.own.answer(one)[0].float().cpu()[real]
        theirs = answer[row].detach().float().cpu()[real]
        given = one.hidden[0].float().cpu()[real]
        off = float((theirs - own).norm() / (own - given).norm())
        allowed = FLOAT32 if answer.dtype == torch.float32 else HALF
        if not off <= allowed:
            raise TrunkError(
                f"a spot check found the trunk's answer off by {off:.2g} of what the "
                f"trunk changes (allowed: {allowed:g}): its host has other weights or "
                "adapters, computes in another precision, or is broken"
            )


def _row(positions: Tensor | None, row: int) -> Tensor | None:
    if positions is None or len(positions) == 1:
        return positions
    return positions[row : row + 1]
