# SPDX-License-Identifier: Apache-2.0
"""A trunk that costs nothing, for what a client does beside it."""

from __future__ import annotations

from torch import Tensor

from atlas_flwr.types import LossReply, TrunkCall, TrunkClient


class Echo(TrunkClient):
    """Answer every question with itself."""

    def forward(self, call: TrunkCall) -> Tensor:
        return call.hidden.clone()

    def backward(self, step: int, grad: Tensor) -> Tensor:
        return grad.clone()

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        raise NotImplementedError("only a vanilla step asks for it")
