# SPDX-License-Identifier: Apache-2.0
"""A connection to the trunk that a defence stands before."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from atlas_flwr.privacy.defences.base import Defence
from atlas_flwr.trunk.passing import PassingTrunk, real_positions
from atlas_flwr.types import MOST_IN_FLIGHT, LossReply, TrunkCall

__all__ = ["DefendedTrunk"]


@dataclass
class DefendedTrunk(PassingTrunk):
    """Change what a client sends, both ways; padding stays as it is.

    The client differentiates as if nothing were changed: the gradient that comes back
    is taken for that of what it had.

    Parameters
    ----------
    trunk : TrunkClient
        Where calls go.
    defence : Defence
        Changes what is sent.
    generator : torch.Generator
        Of what it draws. Whoever knows its seed can take the noise away again: a client
        has a :class:`~atlas_flwr.privacy.defences.system.SystemGenerator`.
    """

    defence: Defence
    generator: torch.Generator
    _real: dict[int, Tensor] = field(default_factory=dict, init=False)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks on what is sent instead."""
        real = real_positions(call)
        if call.step is not None:
            self._real[call.step] = real
            for old in list(self._real)[:-MOST_IN_FLIGHT]:
                del self._real[old]
        return self.trunk.forward(self._defended(call, real))

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate what is sent instead."""
        sent, real = grad.clone(), self._real[step]
        sent[real] = self.defence.gradients(grad[real], self.generator)
        return self.trunk.backward(step, sent)

    def loss(
        self, call: TrunkCall, labels: Tensor | None, logits_to_keep: int = 0
    ) -> LossReply:
        """End the model with what is sent instead; labels are as they are."""
        sent = self._defended(call, real_positions(call))
        return self.trunk.loss(sent, labels, logits_to_keep)

    def leaving(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Return what is sent instead, of each position but once.

        Noise that is drawn anew could be averaged away.
        """
        call = TrunkCall(hidden, mask)
        return self.trunk.leaving(
            self._defended(call, real_positions(call)).hidden, mask
        )

    def _defended(self, call: TrunkCall, real: Tensor) -> TrunkCall:
        hidden = call.hidden.detach().clone()
        hidden[real] = self.defence.activations(hidden[real], self.generator)
        return replace(call, hidden=hidden)
