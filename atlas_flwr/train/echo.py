# SPDX-License-Identifier: Apache-2.0
"""A trunk that costs nothing, for what a client does beside it."""

from __future__ import annotations

from torch import Tensor

from atlas_flwr.types import LossReply, TrunkCall, TrunkClient

__all__ = ["Echo"]


class Echo(TrunkClient):
    """Answer every question with itself."""

    def forward(self, call: TrunkCall) -> Tensor:
        """Return the hidden states as they came, shape (B, T, D)."""
        return call.hidden.clone()

    def backward(self, step: int, grad: Tensor) -> Tensor:
        """Return the gradient as it came, shape (B, T, D)."""
        return grad.clone()

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """Refuse: it has no head."""
        raise AssertionError("only a vanilla split lets its trunk end the model")
