# SPDX-License-Identifier: Apache-2.0
"""A trunk that returns gradients of its own aim, to be read better: for tests alone.

After the feature-space hijacking attack (FSHA, Pasquini et al., CCS '21), where a
server answers a client's steps with gradients of its own, so that what the client sends
comes to lie where the server can read it. There the client trains its part from
nothing, and a discriminator draws it to the server's own network. Here the head is
public but for small adapters, and is read as it is; what hides anything is noise, as
large as a usual position. So the aim is another: positions of a text are driven to
stand at right angles, whatever its tokens are, by which they differ by more of their
size than noise covers. It needs neither texts nor guesses.

No key or registry knows it, so that no run can do this by accident.

Shapes: B texts, T positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from atlas_flwr.errors import TrunkError
from atlas_flwr.privacy.adversary import Adversary, Who
from atlas_flwr.trunk.passing import PassingTrunk, real_positions
from atlas_flwr.types import TrunkCall

__all__ = ["HijackingTrunk", "overlap"]

NEAR = 0.5  # relative distance below which a pass is taken for a probe of a step


@dataclass
class HijackingTrunk(PassingTrunk):
    """Answer as the trunk does, and return other gradients.

    Parameters
    ----------
    trunk : TrunkClient
        An honest one: answers are its own, so that the client learns.
    share : float
        Of the aim in what is returned, from 0, which is honest, to 1; the rest is the
        true gradient. The aim is made as large as that, text by text.
    evades : bool
        Whether it looks for probes of :class:`~atlas_flwr.privacy.watched.WatchedTrunk`
        and corrects what it returns in the direction that they look at.

    Attributes
    ----------
    adversary : Adversary
        Who can do it: whoever runs the trunk.

    Raises
    ------
    TrunkError
        If the share is not in [0, 1].
    """

    adversary: ClassVar[Adversary] = Adversary(
        Who.MALICIOUS_SERVER, weights=False, adapters=False, texts=False, defence=False
    )
    share: float = 1.0
    evades: bool = False
    _calls: dict[int, tuple[TrunkCall, Tensor]] = field(
        default_factory=dict, init=False
    )
    _probes: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise TrunkError(f"share {self.share}; it must be from 0 to 1")

    def forward(self, call: TrunkCall) -> Tensor:
        """Answer as the trunk does, and remember what came."""
        answer = self.trunk.forward(call)
        if call.step is not None:
            self._calls[call.step] = call, answer
        elif self.evades:
            self._recognise(call, answer)
        return answer

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Let the trunk learn, and return a gradient of the aim."""
        back = self.trunk.backward(step, grad)
        call, _ = self._calls.pop(step)
        probe = self._probes.pop(step, None)
        if back is None:
            return None
        real, hidden = real_positions(call), call.hidden.detach().to(back)
        made = torch.zeros_like(back)
        for row, places in enumerate(real):
            made[row, places] = self._aimed(hidden[row, places], back[row, places])
        if probe is not None:
            made += _correction(made, grad.to(back), *probe)
        return made

    def _aimed(self, hidden: Tensor, honest: Tensor) -> Tensor:
        """Return what is returned for one text, shape (T, D)."""
        leaf = hidden.clone().requires_grad_()
        with torch.enable_grad():
            (aim,) = torch.autograd.grad(overlap(leaf), leaf)
        made: Tensor = aim * (honest.norm() / aim.norm().clamp(min=1e-30))
        return (1 - self.share) * honest + self.share * made

    def _recognise(self, call: TrunkCall, answer: Tensor) -> None:
        """Take a pass without a step that is near an open step's for a probe of it."""
        for step, (known, before) in self._calls.items():
            if call.hidden.shape == known.hidden.shape:
                moved = call.hidden - known.hidden
                if moved.norm() < NEAR * known.hidden.norm():
                    self._probes[step] = moved, answer - before


def overlap(hidden: Tensor) -> Tensor:
    """Return the mean squared cosine of two positions (T, D) of a text.

    The first is left out: many models put a position of some hundred times the usual
    size there, which is the same for all texts.
    """
    rows = F.normalize(hidden[1:].float(), dim=1)
    squares = (rows @ rows.T).square()
    others = squares.sum() - squares.diagonal().sum()
    mean: Tensor = others / max(len(rows) * (len(rows) - 1), 1)
    return mean


def _correction(made: Tensor, grad: Tensor, moved: Tensor, change: Tensor) -> Tensor:
    """Return what makes a false gradient fit a probe, text by text."""
    wanted = (grad * change.to(grad)).flatten(1).sum(1)
    moved = moved.to(made)
    found = (made * moved).flatten(1).sum(1)
    length = moved.flatten(1).square().sum(1).clamp(min=1e-30)
    return moved * ((wanted - found) / length)[:, None, None]
