# SPDX-License-Identifier: Apache-2.0
"""A connection to the trunk that keeps small gradients to itself.

After lazily aggregated gradients (LAG, arXiv 1805.09965), where a worker sends nothing
in a round in which its gradient would tell little new. LAG's server goes on with the
gradient that it had; here the gradient is one of a new batch every time, so a step that
is not sent is no step, neither of the trunk nor of the head. What is small is told from
the gradients themselves, and not from the progress of the parameters as in LAG.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from atlas_flwr.errors import SessionError, TrunkError
from atlas_flwr.trunk.passing import PassingTrunk
from atlas_flwr.types import TrunkCall

__all__ = ["SkippingTrunk"]

DECAY = 0.9  # of the running mean: about the last ten gradients


@dataclass
class SkippingTrunk(PassingTrunk):
    """Send a gradient only if it is not small beside those before it.

    Small is a root mean square below ``threshold`` times the exponential mean of the
    root mean squares of all gradients before, sent or not: would only those that were
    sent count, a client whose gradients have shrunk for good would never send again.
    The first gradient is always sent.

    A step that is skipped saves the gradient's way to the trunk and back. The tail
    learns from it as ever; the trunk does not step, and the head has no gradient.
    The trunk holds the step's pass until the next one comes, which takes its number.

    Parameters
    ----------
    trunk : TrunkClient
        Where everything else goes.
    threshold : float
        From 0, which never skips, to 1.
    steps : int, optional
        Backward passes that are to come, if that is known. The last of them is then
        always sent, so that the trunk is left without an open pass.

    Attributes
    ----------
    skipped : int
        Backward passes that were not sent.

    Raises
    ------
    TrunkError
        If the threshold is not in [0, 1].
    """

    threshold: float
    steps: int | None = None
    skipped: int = field(default=0, init=False)
    _mean: float | None = field(default=None, init=False)
    _seen: int = field(default=0, init=False)
    _numbers: dict[int, int] = field(default_factory=dict, init=False)
    _offset: int = field(default=0, init=False)
    _latest: int = field(default=-1, init=False)
    _free: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise TrunkError(f"threshold {self.threshold}; it must be from 0 to 1")

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks (see :class:`~atlas_flwr.types.TrunkClient`)."""
        if call.step is None:
            return self.trunk.forward(call)
        return self.trunk.forward(replace(call, step=self._number(call.step)))

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step, or return ``None`` if its gradient is small.

        Raises
        ------
        SessionError
            If no forward pass of the step waits for it.
        """
        number = self._numbers.pop(step, None)
        if number is None:
            raise SessionError(
                f"step {step} waits for no gradient: its forward pass never came, or "
                "it was back-propagated before; run it again from its forward"
            )
        if not self._is_small(grad):
            return self.trunk.backward(number, grad)
        self.skipped += 1
        if number == self._latest:
            self._free = number
        return None

    def _number(self, step: int) -> int:
        """Number a step for the trunk: the pass of a skipped one is replaced."""
        if step not in self._numbers:
            if self._free is not None:
                self._offset, self._free = step - self._free, None
            self._latest = self._numbers[step] = step - self._offset
        return self._numbers[step]

    def _is_small(self, grad: Tensor) -> bool:
        size = float(grad.detach().float().square().mean().sqrt())
        before = size if self._mean is None else self._mean
        self._mean = DECAY * before + (1 - DECAY) * size
        self._seen += 1
        return size < self.threshold * before and self._seen != self.steps
