# SPDX-License-Identifier: Apache-2.0
"""Spot checks: a client computes what crossed itself, and compares.

It repeats a training round, block by block from its own checkpoint, from the adapters
that the server sent it beside its own and with the gradients that it gave the trunk. It
compares all answers and gradients on the way, and tells the server what the adapters
have come to. Of an evaluation it repeats one text of one call. It does so when the
round is over: until then a host sees calls as ever, and nothing by which to tell that
it is checked (docs/decisions/spot-checks.md).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from atlas_flwr.trunk.hosts.departures import Computed, Departure
from atlas_flwr.trunk.hosts.own_trunk import OwnTrunk, Replayed
from atlas_flwr.trunk.passing import PassingTrunk, real_positions
from atlas_flwr.types import TrunkCall

__all__ = ["CheckedTrunk"]

# Of the norm of what the trunk changes, or its adapters have learned: above what sound
# machines differ by (benchmarks/spot_checks.py), in float32 and in half precision. Adam
# takes whole steps by the signs of gradients, small ones too, so that adapters differ
# by about the root of what gradients do.
ANSWERS, GRADIENTS, ADAPTERS = (5e-3, 1e-1), (5e-3, 3e-1), (7e-2, 5e-1)


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

    Attributes
    ----------
    checked : int
        Steps and calls that were compared.
    """

    own: OwnTrunk
    checked: int = field(default=0, init=False)
    _is_half: bool = field(default=False, init=False)
    _open: dict[int, tuple[TrunkCall, Tensor]] = field(default_factory=dict, init=False)
    _crossed: dict[int, _Crossed] = field(default_factory=dict, init=False)
    _seen: int = field(default=0, init=False)
    _drawn: tuple[TrunkCall, Tensor] | None = field(default=None, init=False)

    def forward(self, call: TrunkCall) -> Tensor:
        """Run the trunk's blocks; keep what is to be compared."""
        answer = self.trunk.forward(call)
        if call.step is None:
            self._seen += 1
            if secrets.randbelow(self._seen) == 0:  # each of them alike, however many
                self._drawn = call, answer
        else:
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
            found.check()

    def computed(self) -> Computed:
        """Tell what the adapters have come to, once the round is settled."""
        begun = self.own.spec.state
        learned = begun.merged(self.own.state())
        return Computed.of(begun, learned, ADAPTERS[self._is_half])

    def departures(self) -> Iterator[Departure]:
        """Yield what was found, in the order of steps; forget what was kept."""
        if self._drawn is not None:
            yield self._of_text(*self._drawn)
            self.checked += 1
        for window in self._windows():
            self._is_half = _is_half(window[0].call)
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
        allowed = ANSWERS[_is_half(call)]
        return Departure("answer", _off(theirs, own, one.hidden, one), allowed)


def _of_step(theirs: _Crossed, own: Replayed) -> Iterator[Departure]:
    call, number, half = theirs.call, theirs.call.step, _is_half(theirs.call)
    off = _off(theirs.answer, own.answer, call.hidden, call)
    yield Departure(f"answer of step {number}", off, ANSWERS[half])
    if theirs.back is not None:
        off = _off(theirs.back, own.back, theirs.grad, call)
        yield Departure(f"gradient of step {number}", off, GRADIENTS[half])


def _is_half(call: TrunkCall) -> bool:
    """Tell if a guest computes in half precision, whatever its host does."""
    return call.hidden.dtype != torch.float32


def _off(theirs: Tensor, own: Tensor, given: Tensor, call: TrunkCall) -> float:
    """Compare what went in as ``given`` at a call's texts, and not at its padding."""
    real = real_positions(call).cpu()
    theirs, own, given = (t.detach().float().cpu()[real] for t in (theirs, own, given))
    off, change = float((theirs - own).norm()), float((own - given).norm())
    return off / change if change else off


def _row(positions: Tensor | None, row: int) -> Tensor | None:
    if positions is None or len(positions) == 1:
        return positions
    return positions[row : row + 1]
