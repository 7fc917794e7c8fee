# SPDX-License-Identifier: Apache-2.0
"""Spot checks: a client computes what crossed itself, and compares.

Of a training round it repeats the steps from the first to one that it draws, block by
block from its own checkpoint, from the adapters that the server sent it beside its own
and with the gradients that it gave the trunk, and compares all answers and gradients on
the way. Of an evaluation it repeats one text of one call. It does so when the round is
over: until then a host sees calls as ever, and nothing by which to tell that it is
checked, or how far (docs/decisions/spot-checks.md).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from atlas_flwr.errors import TrunkError
from atlas_flwr.trunk.hosts.own_trunk import OwnTrunk, Replayed
from atlas_flwr.trunk.passing import PassingTrunk, real_positions
from atlas_flwr.types import TrunkCall

__all__ = ["CheckedTrunk", "Departure"]

# Of the norm of what the trunk changes: far above what sound machines differ by
# (benchmarks/spot_checks.py).
FLOAT32, HALF = 5e-3, 1e-1


class Departure(NamedTuple):
    """How far a host's numbers are from a guest's own.

    Attributes
    ----------
    what : str
        Which numbers.
    off : float
        In norm, of what the trunk changes.
    allowed : float
        Above what sound machines differ by.
    """

    what: str
    off: float
    allowed: float


class _Crossed(NamedTuple):
    """What went over the cut in one step."""

    call: TrunkCall
    answer: Tensor
    grad: Tensor
    back: Tensor | None


@dataclass
class CheckedTrunk(PassingTrunk):
    """Keep what crosses, and compare it with an own computation afterwards.

    Parameters
    ----------
    trunk : TrunkClient
        Whose answers are checked.
    own : OwnTrunk
        Computes them.
    steps : int
        That the round may have; up to so many are kept, and compared.

    Attributes
    ----------
    until : int
        The first step that is not repeated, drawn in secret.
    checked : int
        Steps and calls that were compared.
    """

    own: OwnTrunk
    steps: int
    until: int = field(init=False)
    checked: int = field(default=0, init=False)
    _open: dict[int, tuple[TrunkCall, Tensor]] = field(default_factory=dict, init=False)
    _crossed: dict[int, _Crossed] = field(default_factory=dict, init=False)
    _seen: int = field(default=0, init=False)
    _drawn: tuple[TrunkCall, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.until = 1 + secrets.randbelow(self.steps)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks; keep what is to be compared."""
        answer = self.trunk.forward(call)
        if call.step is None:
            self._seen += 1
            if secrets.randbelow(self._seen) == 0:  # each of them alike, however many
                self._drawn = call, answer
        elif call.step < self.until:
            self._open[call.step] = call, answer
        return answer

    def backward(self, step: int, grad: Tensor) -> Tensor | None:
        """Back-propagate a step; keep what is to be compared."""
        back = self.trunk.backward(step, grad)
        if step in self._open:
            self._crossed[step] = _Crossed(*self._open.pop(step), grad, back)
        return back

    def settle(self) -> None:
        """Compare what was kept with an own computation.

        Raises
        ------
        TrunkError
            If they differ.
        """
        for found in self.departures():
            if not found.off <= found.allowed:
                raise TrunkError(
                    f"a spot check found the trunk's {found.what} off by "
                    f"{found.off:.2g} of what the trunk changes (allowed: "
                    f"{found.allowed:g}): its host has other weights or adapters, "
                    "computes in another precision, is broken, or lies"
                )

    def departures(self) -> Iterator[Departure]:
        """Yield what was found, in the order of steps; forget what was kept."""
        if self._drawn is not None:
            yield self._of_text(*self._drawn)
            self.checked += 1
        for window in self._windows():
            calls = [replace(c.call, padding_unread=False) for c in window]
            found = self.own.train(calls, [c.grad for c in window])
            for theirs, own in zip(window, found, strict=True):
                yield from _of_step(theirs, own)
                self.checked += 1

    def _windows(self) -> Iterator[list[_Crossed]]:
        """Yield the steps of each optimiser step, and forget them."""
        size = self.own.spec.optimizer.accumulate
        while self._crossed:
            first = sorted(self._crossed)[:size]
            yield [self._crossed.pop(step) for step in first]

    def _of_text(self, call: TrunkCall, answer: Tensor) -> Departure:
        row = secrets.randbelow(len(call.hidden))
        mask, positions = call.attention_mask, call.position_ids
        one = replace(
            call,
            hidden=call.hidden[row : row + 1].detach(),
            attention_mask=None if mask is None else mask[row : row + 1],
            position_ids=_row(positions, row),
            padding_unread=False,
        )
        theirs, own = answer[row : row + 1], self.own.answer(one)
        return _departure("answer", theirs, own, one.hidden, one)


def _of_step(theirs: _Crossed, own: Replayed) -> Iterator[Departure]:
    call, number = theirs.call, f"of step {theirs.call.step}"
    yield _departure(f"answer {number}", theirs.answer, own.answer, call.hidden, call)
    if theirs.back is not None:
        what, grad = f"gradient {number}", theirs.grad
        yield _departure(what, theirs.back, own.back, grad, call)


def _departure(
    what: str, theirs: Tensor, own: Tensor, given: Tensor, call: TrunkCall
) -> Departure:
    """Compare what went in as ``given`` at a call's texts, and not at its padding."""
    real = real_positions(call).cpu()
    allowed = FLOAT32 if theirs.dtype == torch.float32 else HALF
    theirs, own, given = (t.detach().float().cpu()[real] for t in (theirs, own, given))
    off, change = float((theirs - own).norm()), float((own - given).norm())
    return Departure(what, off / change if change else off, allowed)


def _row(positions: Tensor | None, row: int) -> Tensor | None:
    if positions is None or len(positions) == 1:
        return positions
    return positions[row : row + 1]
