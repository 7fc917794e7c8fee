# SPDX-License-Identifier: Apache-2.0
r"""A connection to the trunk that asks whether gradients fit the answers.

What a trunk returns for a step must be the gradient of what it answered: to first order

.. math:: \langle g', F(h + v) - F(h) \rangle = \langle g, v \rangle

for hidden states h, the answer F(h), the gradient g' that the client sent, the one g
that came back, and any small v. So in some steps, drawn in secret, a client has
F(h + v) answered, too, with a v of its own, before it sends g'. That needs no weights
and no labels, trains nothing, and works from the first step on, which is why it is this
and not SplitGuard's steps with false labels (Erdogan et al., WPES '22): those would
train the trunk's adapters, and the cluster's, on the false labels.

A trunk that knows of it can recognise h + v, which is near h, and bend g along v alone
to fit (:class:`~atlas_flwr.privacy.attacks.hijack.HijackingTrunk`, ``evades``).

Shapes: B texts, T positions, D width.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atlas_flwr.errors import TrunkError
from atlas_flwr.trunk.passing import PassingTrunk, real_positions
from atlas_flwr.types import MOST_IN_FLIGHT, TrunkCall

__all__ = ["ALLOWED", "TEXTS", "WatchedTrunk"]

PROBE = 0.002  # length of v, of each position's: above float32's rounding
TEXTS = 8  # compared before anything is said
ALLOWED = 0.1  # see `off`
DRAWS = 1 << 30


@dataclass
class WatchedTrunk(PassingTrunk):
    """Hand calls on, and in some steps compare gradients with answers.

    Parameters
    ----------
    trunk : TrunkClient
        Which is watched; what it gets must be what the caller of this sends.
    share : float
        Of the steps, above 0, at most 1.
    allowed : float
        Of :attr:`off`: above it, and with enough texts, there is an alarm.

    Attributes
    ----------
    watched : int
        Steps that were compared.

    Raises
    ------
    TrunkError
        If the share is not in (0, 1].
    """

    share: float
    allowed: float = ALLOWED
    watched: int = field(default=0, init=False)
    _probes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)
    _told: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise TrunkError(f"share {self.share}; it must be above 0 and at most 1")

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks, and if the step is watched run them again beside."""
        answer = self.trunk.forward(call)
        if call.step is not None:
            self._probes.pop(call.step, None)  # of a pass that this one replaces
        is_drawn = secrets.randbelow(DRAWS) < self.share * DRAWS
        if call.step is not None and call.head_learns and is_drawn:
            hidden, real = call.hidden.detach(), real_positions(call)[..., None]
            asked = hidden + self._direction(call)
            beside = self.trunk.forward(replace(call, hidden=asked, step=None))
            # What is answered at padding may be anything.
            change = torch.where(real.to(answer.device), beside - answer, 0.0)
            self._probes[call.step] = (asked - hidden).float(), change.float()
            for old in list(self._probes)[:-MOST_IN_FLIGHT]:
                del self._probes[old]
        return answer

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step, and if it is watched compare.

        Raises
        ------
        TrunkError
            If what comes back is not the gradient of what was answered.
        """
        back = self.trunk.backward(step, grad)
        probe = self._probes.pop(step, None)
        if probe is not None and back is not None:
            moved, change = (part.to(back.device) for part in probe)
            self._told.append(
                (
                    (back.float() * moved).flatten(1).sum(1),
                    (grad.float().to(change.device) * change).flatten(1).sum(1),
                )
            )
            self.watched += 1
            self._judge()
        return back

    @property
    def off(self) -> float:
        """By how much the two sides differ, over all texts that were compared.

        The root mean square of their difference over that of what the answers say: 0
        for exact ones, about 1 or more for gradients that have nothing to do with it.
        """
        said, fits = (torch.cat(parts) for parts in zip(*self._told, strict=True))
        return float((said - fits).norm() / fits.norm().clamp(min=1e-30))

    def _judge(self) -> None:
        texts = sum(len(said) for said, _ in self._told)
        if texts >= TEXTS and not self.off <= self.allowed:
            raise TrunkError(
                f"the gradients of {texts} texts are off by {self.off:.2g} of what "
                f"the trunk's own answers make them (allowed: {self.allowed:g}): it "
                "returns others, to shape this client's adapters, or is broken; this "
                "client takes no further part in the round"
            )

    def _direction(self, call: TrunkCall) -> Tensor:
        """Return v: as long for every position, by its own length; padding is still."""
        # Not from the global generator, whose numbers a run's own draws are.
        drawn = torch.Generator()
        drawn.seed()
        normal = torch.randn(call.hidden.shape, generator=drawn).to(call.hidden)
        size = call.hidden.detach().norm(dim=-1, keepdim=True)
        v: Tensor = PROBE * size * F.normalize(normal, dim=-1)
        return v * real_positions(call)[..., None]
