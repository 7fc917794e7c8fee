# SPDX-License-Identifier: Apache-2.0
"""A connection to the trunk that hands everything on: what stands there derives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from atlas_flwr.types import Continuation, LossReply, TrunkCall, TrunkClient
from atlas_flwr.wire.accounts import ByteMeter

__all__ = ["PassingTrunk", "real_positions", "standing_in"]

T = TypeVar("T", bound=TrunkClient)


@dataclass
class PassingTrunk(TrunkClient):
    """Hand all calls on, and all answers back.

    Parameters
    ----------
    trunk : TrunkClient
        Where they go.
    """

    trunk: TrunkClient

    @property
    def meter(self) -> ByteMeter:
        """What has crossed; nothing where calls cross without frames."""
        meter = getattr(self.trunk, "meter", None)
        return meter if isinstance(meter, ByteMeter) else ByteMeter()

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        return self.trunk.forward(call)

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step."""
        return self.trunk.backward(step, grad)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model."""
        return self.trunk.loss(call, labels, logits_to_keep)

    @property
    def keeps_caches(self) -> bool:
        """Whether the trunk does."""
        return self.trunk.keeps_caches

    def leaving(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return what is sent of positions that are new to texts."""
        return self.trunk.leaving(hidden, mask)

    def extend(self, call: TrunkCall, place: Continuation, keep: int = 0) -> Tensor:
        """Go on with texts."""
        return self.trunk.extend(call, place, keep)

    def forget(self, texts: int) -> None:
        """Free what the trunk keeps of texts."""
        self.trunk.forget(texts)


def standing_in(trunk: TrunkClient | None, kind: type[T]) -> T | None:
    """Return what of a kind stands between a client and its trunk, if anything."""
    while isinstance(trunk, PassingTrunk) and not isinstance(trunk, kind):
        trunk = trunk.trunk
    return trunk if isinstance(trunk, kind) else None


def real_positions(call: TrunkCall) -> Tensor:
    """Return where a call's positions are no padding, shape (B, T), bool."""
    shape, mask = call.hidden.shape[:2], call.attention_mask
    if mask is None or mask.dim() != 2:
        return torch.ones(shape, dtype=torch.bool, device=call.hidden.device)
    return mask[:, -shape[1] :].to(call.hidden.device) != 0
