# SPDX-License-Identifier: Apache-2.0
"""One pass of the frozen base over rows of several sessions.

A session enters at its own first block and leaves at its own last one, so the rows
change where one does. In between there is a segment, on which the base runs once.
Shorter texts and smaller batches are filled up, behind a mask; what is filled up has no
gradient.

Shape suffixes: K sessions, B texts of a session, T positions, D the model's width.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from atlas_flwr.trunk.engine.base import SharedBase
from atlas_flwr.trunk.engine.leaves import Leaves, Segment, Share
from atlas_flwr.trunk.engine.session import Session
from atlas_flwr.types import TrunkCall

__all__ = ["JointPass", "JointSlot", "Member"]

WORTH = 2 / 3  # of a graph's rows have to be asked for, or those are run again


@dataclass(frozen=True)
class Member:
    """A session's rows in a joined pass."""

    session: Session
    call: TrunkCall

    @property
    def tokens(self) -> int:
        """Its rows, padding of its own included."""
        return self.call.hidden.shape[0] * self.call.hidden.shape[1]


@dataclass(frozen=True)
class JointSlot:
    """A session's place in the graph of a joined pass."""

    joint: JointPass
    number: int


@dataclass(frozen=True, eq=False)
class _Crowd:
    """Rows of the sessions ``numbers``, shape (K, B, T, D); ``own`` enter or leave."""

    numbers: tuple[int, ...]
    rows: Tensor
    own: frozenset[int]


@dataclass(frozen=True, eq=False)
class _Graph:
    """What a backward pass is taken of, once; it is freed with who has taken it.

    Attributes
    ----------
    members : Sequence[Member]
        The sessions.
    entered, exits : Sequence[_Crowd]
        Where they enter, and where they leave.
    leaves : Leaves
        Their parameters.
    """

    members: Sequence[Member]
    entered: Sequence[_Crowd]
    exits: Sequence[_Crowd]
    leaves: Leaves

    def backward(self, grads: Mapping[int, Tensor]) -> dict[int, tuple[Tensor, Share]]:
        """Differentiate; return d loss / d hidden and the parameters' share.

        Parameters
        ----------
        grads : Mapping[int, Tensor]
            By the session's number: d loss / d answer. Of sessions that are left out,
            the passes have to be run again.
        """
        outputs = [e.rows for e in self.exits]
        given = [_gathered(exit_, grads) for exit_ in self.exits]
        entered = [e.rows for e in self.entered]
        self.leaves.asked.update(grads)
        inputs = [*entered, *self.leaves.tensors]
        found = torch.autograd.grad(outputs, inputs, given, allow_unused=True)
        firsts = [
            torch.zeros_like(rows) if grad is None else grad
            for rows, grad in zip(entered, found, strict=False)
        ]
        back = _by_member(self.members, self.entered, firsts)
        shares = self.leaves.shares(found[len(entered) :])
        return {number: (back[number], shares[number]) for number in grads}


class JointPass:
    """Run the sessions' blocks once for all; keep the graph if gradients are recorded.

    Its sessions' backward passes may be asked for in several threads at once.

    Parameters
    ----------
    base : SharedBase
        Whose blocks.
    members : Sequence[Member]
        The sessions, at least one; their calls have been received.
    """

    def __init__(self, base: SharedBase, members: Sequence[Member]) -> None:
        self.members = members
        shapes = [member.call.hidden.shape for member in members]
        self._size = max(s[0] for s in shapes), max(s[1] for s in shapes)
        self._segments = _segments(base, [m.session for m in members])
        sessions = [member.session for member in members]
        self._leaves = Leaves.of(sessions, self._segments, base.rounded)
        self._rest = _rest(members, self._size)
        self._entered: list[_Crowd] = []
        self._exits: list[_Crowd] = []
        self._left = sum(member.tokens for member in members)
        self._lock = threading.Lock()
        self._run(base)

    @property
    def has_graph(self) -> bool:
        """Whether a backward pass can be taken."""
        return bool(self._exits) and self._exits[0].rows.requires_grad

    def answers(self) -> list[Tensor]:
        """Return each session's hidden states, shape (B, T, D) of its own."""
        leaving = [e.rows.detach() for e in self._exits]
        return _by_member(self.members, self._exits, leaving)

    def take(self, numbers: Sequence[int]) -> _Graph | None:
        """Return the graph if it is to be used for these sessions; else they run again.

        It is used once at most, for most of its rows: for few it would cost what it
        costs for all. What is then left over, or too little to use it, runs again too.
        Whoever has taken it has it alone.
        """
        with self._lock:
            if not self.has_graph:
                return None
            asked = sum(self.members[number].tokens for number in numbers)
            every = sum(member.tokens for member in self.members)
            self._left -= asked
            found = None
            if asked >= WORTH * every:
                found = _Graph(self.members, self._entered, self._exits, self._leaves)
            if found is not None or self._left < WORTH * every:
                self._forget()
            return found

    def drop(self) -> None:
        """Free the graph, if nobody has taken it."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._exits, self._entered, self._leaves = [], [], Leaves(())

    def _run(self, base: SharedBase) -> None:
        crowd: _Crowd | None = None
        for segment, adapters in zip(
            self._segments, self._leaves.adapters, strict=True
        ):
            rows = self._next(crowd, segment.order)
            hidden = rows.flatten(0, 1)
            rest = {
                name: None if t is None else _rows(t, segment.order).flatten(0, 1)
                for name, t in self._rest.items()
            }
            blocks = segment.start, segment.stop
            out = base.run_joined(blocks, hidden, adapters, **rest)
            everyone = frozenset(segment.order)
            crowd = _Crowd(segment.order, out.view(rows.shape), everyone)
        assert crowd is not None
        self._exits.append(crowd)

    def _next(self, crowd: _Crowd | None, order: tuple[int, ...]) -> Tensor:
        """Let sessions leave and enter; return the rows of those in ``order``."""
        before = () if crowd is None else crowd.numbers
        staying = [number for number in before if number in order]
        rows = []
        if crowd is not None:
            if len(staying) < len(before):
                leaving = frozenset(before) - frozenset(staying)
                self._exits.append(replace(crowd, own=leaving))
            if staying:
                places = tuple(before.index(number) for number in staying)
                rows.append(_rows(crowd.rows, places))
        entering = tuple(order[len(staying) :])
        if entering:
            hidden = [self.members[number].call.hidden for number in entering]
            entered = _filled(hidden, self._size).requires_grad_()
            self._entered.append(_Crowd(entering, entered, frozenset(entering)))
            rows.append(entered)
        return rows[0] if len(rows) == 1 else torch.cat(rows)


def _by_member(
    members: Sequence[Member], crowds: Sequence[_Crowd], tensors: Sequence[Tensor]
) -> list[Tensor]:
    """Cut out each session's own rows, where it enters or leaves."""
    found: dict[int, Tensor] = {}
    for crowd, tensor in zip(crowds, tensors, strict=True):
        for row, number in enumerate(crowd.numbers):
            if number in crowd.own:
                b, t, _ = members[number].call.hidden.shape
                found[number] = tensor[row, :b, :t]
    return [found[number] for number in range(len(members))]


def _gathered(crowd: _Crowd, grads: Mapping[int, Tensor]) -> Tensor:
    """Stack the gradients of those that leave here; zeros for all others."""
    own = [grads.get(n) if n in crowd.own else None for n in crowd.numbers]
    shape = crowd.rows.shape[1:]
    whole = [g for g in own if g is not None and g.shape == shape]
    if len(whole) == len(own):
        return torch.stack(whole).to(crowd.rows.dtype)
    made = torch.zeros_like(crowd.rows)
    for row, grad in enumerate(own):
        if grad is not None:
            made[row, : grad.shape[0], : grad.shape[1]] = grad
    return made


def _segments(base: SharedBase, sessions: Sequence[Session]) -> list[Segment]:
    """Cut the blocks where a session enters or leaves."""
    ranges = [s.spec.plan.trunk_range(base.info.num_layers) for s in sessions]
    made: list[Segment] = []
    before: tuple[int, ...] = ()
    for start, stop in pairwise(sorted({e for r in ranges for e in (r.start, r.stop)})):
        inside = [k for k, r in enumerate(ranges) if r.start <= start < r.stop]
        staying = [k for k in before if k in inside]
        order = (*staying, *(k for k in inside if k not in staying))
        if order:
            made.append(Segment(start, stop, order, base.info))
        before = order
    return made


def _rest(members: Sequence[Member], size: tuple[int, int]) -> dict[str, Tensor | None]:
    """Join masks and positions, shape (K, B, T): no mask where none is needed."""
    calls = [member.call for member in members]
    ragged = any(tuple(c.hidden.shape[:2]) != size for c in calls)
    mask = None
    if ragged or any(c.attention_mask is not None for c in calls):
        mask = _filled([_mask(c) for c in calls], size)
        for row, call in enumerate(calls):
            mask[row, call.hidden.shape[0] :] = 1  # whole texts that are filled up
    given = [c.position_ids for c in calls if c.position_ids is not None]
    positions = _filled(given, size) if given else None
    return {"attention_mask": mask, "position_ids": positions}


def _mask(call: TrunkCall) -> Tensor:
    if call.attention_mask is None:
        ones = call.hidden.shape[:2]
        return torch.ones(ones, dtype=torch.long, device=call.hidden.device)
    return (call.attention_mask != 0).long()


def _filled(tensors: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Stack tensors of shape (b, t, ...) as (K, B, T, ...), with zeros behind them."""
    with torch.no_grad():
        if all(tuple(t.shape[:2]) == size for t in tensors):
            return torch.stack(list(tensors))
        made = tensors[0].new_zeros(len(tensors), *size, *tensors[0].shape[2:])
        for row, tensor in enumerate(tensors):
            made[row, : tensor.shape[0], : tensor.shape[1]] = tensor
        return made


def _rows(tensor: Tensor, numbers: tuple[int, ...]) -> Tensor:
    if numbers == tuple(range(len(tensor))):
        return tensor
    return tensor.index_select(0, torch.tensor(numbers, device=tensor.device))
